"""Assembling the content of one output: visible text, tool calls in it, and the log-probabilities of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from osaurusd.inference.events import TokenLogprob, ToolCallDelta
from osaurusd.worker.frontend.logprobs import TokenAligner
from osaurusd.worker.frontend.tool_calls import CallStreamer, ParsedCall, ToolCallParser, call_deltas, may_be_calls


class OutputDelta(msgspec.Struct, kw_only=True):
    """New output of one sequence; the fields are those of `inference.events.Delta`."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprob] = []

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tool_calls or self.logprobs)


@dataclass(frozen=True)
class ContentRules:
    """How to read the content of an output.

    Attributes:
        stop: stop strings.
        call_parser: finds tool calls; None leaves them in the text.
        unmarked_calls: an output without markers may consist of calls.
        max_calls: calls to report; later ones are dropped. None reports all.
        call_streamer: the output is constrained to calls, which this object streams.
        aligner: keeps log-probabilities; None if they are not requested.
    """

    stop: Sequence[str] = ()
    call_parser: ToolCallParser | None = None
    unmarked_calls: bool = False
    max_calls: int | None = None
    call_streamer: CallStreamer | None = None
    aligner: TokenAligner | None = None


class TextAssembler:
    """The content of one output. Receives everything that the model generates, and emits or drops it.

    Attributes:
        stopped: further output is ignored: a stop string matched, the last allowed call is complete, or a required
            call repeated an earlier one.
        has_tool_calls: at least one call was emitted.
    """

    def __init__(self, rules: ContentRules) -> None:
        self.stopped = False
        self.has_tool_calls = False
        self._rules = rules
        self._stop_matcher = StopMatcher(rules.stop)
        self._delta = OutputDelta()
        self._held = ""
        self._call_count = 0
        self._may_be_calls = rules.unmarked_calls

    @property
    def matched_stop(self) -> str | None:
        """The stop string that matched, if one did."""
        return self._stop_matcher.matched_stop

    def take_delta(self) -> OutputDelta | None:
        """Return what was emitted since the last call, or None."""
        if not self._delta:
            return None
        delta, self._delta = self._delta, OutputDelta()
        return delta

    def add_reasoning(self, text: str) -> None:
        """Emit reasoning text, whose characters were dropped from the content."""
        self._delta.reasoning += text

    def drop(self, characters: int) -> None:
        """Skip characters that are not content, and the tokens they belong to."""
        if self._rules.aligner is not None:
            self._rules.aligner.drop(characters)

    def add_text(self, text: str) -> None:
        """Add text. Text that may become part of a stop string or of a call is held back until that is certain."""
        if self._rules.call_streamer is not None:
            self._stream_calls(self._rules.call_streamer, text)
            return
        self._hold(self._stop_matcher.feed(text))
        if self._stop_matcher.matched:
            self._stop()

    def end_text(self, *, before_call: bool) -> None:
        """End a segment of text. White space before a call belongs to the call."""
        self._hold(self._stop_matcher.flush())
        if self._stop_matcher.matched:
            self._stop()
            return
        self._may_be_calls = self._may_be_calls and not self._held.strip()
        self._release(len(self._held.rstrip() if before_call else self._held))

    def add_call(self, block: str, marked: str) -> None:
        """Add a complete call after `end_text`. Falls back to text if it is not a valid call.

        Args:
            block: the text between the markers.
            marked: the same with its markers.
        """
        calls = self._rules.call_parser.parse_block(block) if self._rules.call_parser is not None else None
        if calls is None:
            self.add_text(marked)
            return
        self.drop(len(self._held) + len(marked))
        self._held = ""
        self._emit_calls(calls)

    def finish(self, *, truncated: bool) -> None:
        """End the output. A truncated output does not count as calls without markers."""
        if self._rules.call_streamer is not None:
            self._delta.tool_calls += self._rules.call_streamer.finish()
        self._hold(self._stop_matcher.flush())
        if self._stop_matcher.matched:
            self._stop()
        elif self._may_be_calls and not truncated and (calls := self._parse_held()):
            self.drop(len(self._held))
            self._emit_calls(calls)
        elif self.has_tool_calls and not self._held.strip():
            self.drop(len(self._held))
        else:
            self._release(len(self._held))

    def _stream_calls(self, streamer: CallStreamer, text: str) -> None:
        self.drop(len(text))
        self._delta.tool_calls += streamer.feed(text)
        self.has_tool_calls = self.has_tool_calls or bool(self._delta.tool_calls)
        self.stopped = streamer.repeated

    def _hold(self, text: str) -> None:
        """Add text that is not part of a stop string, and release it unless a call may include it."""
        self._held += text
        if self._rules.call_parser is None:
            self._release(len(self._held))
            return
        self._may_be_calls = self._may_be_calls and may_be_calls(self._held)
        if not self._may_be_calls:
            self._release(len(self._held.rstrip()))

    def _stop(self) -> None:
        self._release(len(self._held))
        self.stopped = True

    def _release(self, characters: int) -> None:
        text, self._held = self._held[:characters], self._held[characters:]
        self._delta.text += text
        if self._rules.aligner is not None:
            self._delta.logprobs += self._rules.aligner.emit(characters)

    def _parse_held(self) -> list[ParsedCall] | None:
        return self._rules.call_parser.parse_output(self._held) if self._rules.call_parser is not None else None

    def _emit_calls(self, calls: list[ParsedCall]) -> None:
        remaining = None if self._rules.max_calls is None else self._rules.max_calls - self._call_count
        for call in calls[:remaining]:
            self._delta.tool_calls += call_deltas(call, self._call_count)
            self._call_count += 1
            self.has_tool_calls = True
        self.stopped = self._call_count == self._rules.max_calls


class StopMatcher:
    """Finds stop strings in text that arrives in chunks.

    Holds back text that may be the beginning of a stop string, so no part of a stop string is emitted. Of several stop
    strings, the one that begins first wins, however the text is split.

    Attributes:
        matched_stop: the stop string that matched, or None.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.matched_stop: str | None = None
        self._stop = [text for text in stop if text]
        self._held = ""

    @property
    def matched(self) -> bool:
        return self.matched_stop is not None

    def feed(self, text: str) -> str:
        """Add text and return what can be emitted. Sets `matched_stop` once a stop string is complete."""
        if not self._stop:
            return text
        text = self._held + text
        start = _first_match(text, self._stop)
        # From here on, a stop string may have begun, possibly one that contains the match.
        undecided = len(text) - max(_overlap(text, stop) for stop in self._stop)
        if start is not None and start <= undecided:
            return self._match(text, start)
        self._held = text[undecided:]
        return text[:undecided]

    def flush(self) -> str:
        """Return the text that was held back once no more text follows. Sets `matched_stop` like `feed`."""
        held, self._held = self._held, ""
        start = _first_match(held, self._stop)
        return held if start is None else self._match(held, start)

    def _match(self, text: str, start: int) -> str:
        self.matched_stop = next(stop for stop in self._stop if text.startswith(stop, start))
        self._held = ""
        return text[:start]


def _first_match(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop string in `text` begins."""
    return min((start for start in map(text.find, stops) if start >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    start = max(len(text) - len(stop) + 1, 0)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
