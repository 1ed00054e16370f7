"""What an answer says apart from thoughts: its text, the calls in it, and the likelihoods of the text's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from osaurusd.inference.events import TokenLogprob, ToolCallDelta
from osaurusd.worker.frontend.calls import Call, CallReader, LiveCalls, may_be_whole, told
from osaurusd.worker.frontend.likelihood import Ledger
from osaurusd.worker.frontend.text import StopMatcher


class OutputDelta(msgspec.Struct, kw_only=True):
    """What is new in an answer, under the names of `Delta`."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCallDelta] = []
    tokens: list[TokenLogprob] = []

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.tokens)


@dataclass(frozen=True)
class Rules:
    """How the content of an answer is to be read.

    Attributes:
        stop: strings that end it.
        reader: finds calls, of which the first `max_calls` are told; None leaves them in the text.
        unmarked: the answer as a whole may be calls, without markers around them.
        live: the answer is held to consist of calls, which this one tells.
        ledger: keeps the scores; None if none are wanted.
    """

    stop: Sequence[str] = ()
    reader: CallReader | None = None
    unmarked: bool = False
    max_calls: int | None = None
    live: LiveCalls | None = None
    ledger: Ledger | None = None


class Content:
    """The content of one answer. Everything that the model writes goes through it, in order: said, or dropped.

    Attributes:
        stopped: nothing that follows counts, because of a stop string or because no further call is wanted.
        called: at least one call was told.
    """

    def __init__(self, rules: Rules) -> None:
        self.stopped = False
        self.has_tool_calls = False
        self._rules = rules
        self._stop = StopMatcher(rules.stop)
        self._news = OutputDelta()
        self._held = ""
        self._calls = 0
        self._watching = rules.unmarked

    @property
    def matched_stop(self) -> str | None:
        return self._stop.matched_stop

    def take_news(self) -> OutputDelta | None:
        """What was told since the last time."""
        if not self._news:
            return None
        news, self._news = self._news, OutputDelta()
        return news

    def think(self, thought: str) -> None:
        """Tell a thought, whose characters have been dropped from the content."""
        self._news.reasoning += thought

    def drop(self, characters: int) -> None:
        """Characters that are no content, with the tokens that have them."""
        if self._rules.ledger is not None:
            self._rules.ledger.drop(characters)

    def say(self, text: str) -> None:
        """More text. What may become part of a stop string or of a call is held until that is known."""
        if self._rules.live is not None:
            self._say_live(self._rules.live, text)
            return
        self._hold(self._stop.feed(text))
        if self._stop.matched:
            self._stop_here()

    def pause(self, *, for_call: bool) -> None:
        """Something else follows; if it is a call, the white space before it belongs to it."""
        self._hold(self._stop.flush())
        if self._stop.matched:
            self._stop_here()
            return
        self._watching = self._watching and not self._held.strip()
        self._release(len(self._held.rstrip() if for_call else self._held))

    def call(self, block: str, marked: str) -> None:
        """A complete call, after `pause`: what stands between its markers, and all of it; text if it is none."""
        calls = self._rules.reader.block(block) if self._rules.reader is not None else None
        if calls is None:
            self.say(marked)
            return
        self.drop(len(self._held) + len(marked))
        self._held = ""
        self._tell(calls)

    def finish(self, *, cut: bool) -> None:
        """Nothing follows. An answer that was cut is no call as a whole."""
        self._hold(self._stop.flush())
        if self._stop.matched:
            self._stop_here()
        elif self._watching and not cut and (calls := self._whole()):
            self.drop(len(self._held))
            self._tell(calls)
        elif self.has_tool_calls and not self._held.strip():
            self.drop(len(self._held))
        else:
            self._release(len(self._held))

    def _say_live(self, live: LiveCalls, text: str) -> None:
        self.drop(len(text))
        self._news.calls += live.feed(text)
        self.has_tool_calls = self.has_tool_calls or bool(self._news.calls)

    def _hold(self, text: str) -> None:
        """Text that no stop string can cut off any more; told at once, but for what calls may swallow."""
        self._held += text
        if self._rules.reader is None:
            self._release(len(self._held))
            return
        self._watching = self._watching and may_be_whole(self._held)
        if not self._watching:
            self._release(len(self._held.rstrip()))

    def _stop_here(self) -> None:
        self._release(len(self._held))
        self.stopped = True

    def _release(self, characters: int) -> None:
        text, self._held = self._held[:characters], self._held[characters:]
        self._news.text += text
        if self._rules.ledger is not None:
            self._news.tokens += self._rules.ledger.tell(characters)

    def _whole(self) -> list[Call] | None:
        return self._rules.reader.whole(self._held) if self._rules.reader is not None else None

    def _tell(self, calls: list[Call]) -> None:
        for call in calls[: None if self._rules.max_calls is None else self._rules.max_calls - self._calls]:
            self._news.calls += told(call, self._calls)
            self._calls += 1
            self.has_tool_calls = True
        self.stopped = self._calls == self._rules.max_calls
