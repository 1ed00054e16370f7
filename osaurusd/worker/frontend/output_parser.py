"""Convert the tokens of one sequence to deltas: text, reasoning, tool calls and log-probabilities."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from mlx_lm.generate import make_text_state_machine

from osaurusd.inference.events import TokenLogprob
from osaurusd.inference.request import ChatPrompt, GenerationRequest, RequiredToolCalls, Tool
from osaurusd.worker.frontend.chat_template import EncodedPrompt
from osaurusd.worker.frontend.logprobs import Score, TokenAligner, TokenTexts
from osaurusd.worker.frontend.markers import CALL, REASONING, TEXT, Markers, Segment, Splitter
from osaurusd.worker.frontend.text_assembler import ContentRules, OutputDelta, TextAssembler
from osaurusd.worker.frontend.tool_calls import CallStreamer, ToolCallParser

CallFormat = Literal["own", "fallback"] | None
"""The format of the tool calls to look for: the model's own one, which mlx_lm knows, or that of `fallback_tools`."""


class Detokenizer(Protocol):
    """The interface of mlx_lm's streaming detokenizers."""

    @property
    def last_segment(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


class SequenceOutput:
    """The output of one sequence. All methods run on one thread; none of them uses MLX.

    Args:
        detokenizer: a fresh one.
        rules: how to read the content.
        splitter: finds the markers; None if the model has none.

    Attributes:
        reasoning_tokens: reasoning tokens so far, the end marker included.
    """

    def __init__(self, detokenizer: Detokenizer, rules: ContentRules, splitter: Splitter | None = None) -> None:
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._aligner = rules.aligner
        self._content = TextAssembler(rules)
        self._splitter = splitter
        # Most outputs are plain text and skip all parsing.
        self._is_plain = not (
            any(rules.stop) or rules.aligner or rules.call_parser or rules.call_streamer or splitter is not None
        )
        self._call_start = ""
        self._call_block = ""
        self._held_newlines = ""
        self._after_marker = self._is_reasoning

    @property
    def stopped(self) -> bool:
        """Whether the output ended before its end token: by a stop string or by the last allowed call."""
        return self._content.stopped

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the output, if one did."""
        return self._content.matched_stop

    @property
    def has_tool_calls(self) -> bool:
        """Whether a tool call was emitted. The finish reason is then `tool_calls`, unless the output is truncated."""
        return self._content.has_tool_calls

    def add(self, token: int, score: Score | None = None) -> OutputDelta | None:
        """Add one token and return the output that can now be emitted, or None."""
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        if self._is_plain:
            return OutputDelta(text=text) if text else None
        if self._aligner is not None:
            self._aligner.add(token, score, len(text))
        was_reasoning = self._is_reasoning
        self._split(text)
        self.reasoning_tokens += was_reasoning or self._is_reasoning
        return self._content.take_delta()

    def finish(self, *, truncated: bool) -> OutputDelta | None:
        """Return the remaining output after the last token.

        Args:
            truncated: the output ended at the token limit, not with an end token. An incomplete call is text then.
        """
        if self.stopped:
            return None
        self._detokenizer.finalize()
        text = self._detokenizer.last_segment
        if self._is_plain:
            return OutputDelta(text=text) if text else None
        if self._aligner is not None:
            self._aligner.extend(len(text))
        self._split(text)
        if not self._content.stopped and self._splitter is not None:
            self._handle(self._splitter.flush())
            self._end_open_call(self._splitter, truncated=truncated)
        if not self._content.stopped:
            self._content.finish(truncated=truncated)
        return self._content.take_delta()

    @property
    def _is_reasoning(self) -> bool:
        return self._splitter is not None and self._splitter.state == REASONING

    def _split(self, text: str) -> None:
        if self._splitter is None:
            self._content.add_text(text)
            return
        for segment in self._splitter.feed(text):
            self._handle(segment)
            if self.stopped:
                return

    def _handle(self, segment: Segment) -> None:
        if segment.state == TEXT:
            text = self._strip_leading_newlines(segment.text)
            self._content.drop(len(segment.text) - len(text))
            self._content.add_text(text)
        elif segment.state == REASONING:
            self._add_reasoning(segment.text)
        elif segment.state == CALL:
            self._call_block += segment.text
        else:
            self._content.drop(len(segment.text))
        if segment.after is not None and not self.stopped:
            self._handle_marker(segment.state, segment.marker, segment.after)

    def _handle_marker(self, before: str, marker: str, after: str) -> None:
        if before == CALL:
            self._end_call(marker)
            return
        self._content.end_text(before_call=after == CALL)
        self._held_newlines = ""
        self._after_marker = REASONING in (before, after)
        if after == CALL:
            self._call_start = marker
        else:
            self._content.drop(len(marker))

    def _add_reasoning(self, text: str) -> None:
        """Add reasoning text without the newlines next to its markers."""
        self._content.drop(len(text))
        text = self._held_newlines + self._strip_leading_newlines(text)
        reasoning = text.rstrip("\n")
        self._held_newlines = text[len(reasoning) :]
        self._content.add_reasoning(reasoning)

    def _strip_leading_newlines(self, text: str) -> str:
        if not self._after_marker:
            return text
        stripped = text.lstrip("\n")
        self._after_marker = not stripped
        return stripped

    def _end_call(self, marker: str) -> None:
        block, self._call_block = self._call_block, ""
        self._content.add_call(block, f"{self._call_start}{block}{marker}")

    def _end_open_call(self, splitter: Splitter, *, truncated: bool) -> None:
        """End a call that is open at the end of the sequence. Formats without an end marker always end this way."""
        if splitter.state != CALL:
            return
        if truncated:
            self._content.add_text(f"{self._call_start}{self._call_block}")
        else:
            self._end_call("")


class OutputParser:
    """Creates sequence outputs for one model. Safe on any thread.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)
        self._markers: dict[CallFormat, Markers] = {
            None: Markers.from_tokenizer(tokenizer, calls=False),
            "fallback": Markers.from_tokenizer(tokenizer, calls=True),
        }
        if tokenizer.has_tool_calling:
            self._markers["own"] = Markers.from_tokenizer(tokenizer, calls=True, own_format=True)
        self._machines = {calls: make_text_state_machine(markers) for calls, markers in self._markers.items()}

    def create_output(self, request: GenerationRequest, prompt: EncodedPrompt) -> SequenceOutput:
        """Create the output of one choice of `request`, whose prompt was encoded as `prompt`."""
        stop = [*request.stop, *prompt.stop]
        aligner = None if request.logprobs is None else TokenAligner(self._texts)
        if not isinstance(request.prompt, ChatPrompt):
            return SequenceOutput(self._primed_detokenizer(prompt.tokens), ContentRules(stop=stop, aligner=aligner))
        calls = self._call_format(request, prompt)
        rules = ContentRules(
            stop=stop,
            call_parser=self._call_parser(request.prompt.tools, calls) if calls else None,
            unmarked_calls=calls == "fallback",
            max_calls=None if request.parallel_tool_calls else 1,
            call_streamer=CallStreamer() if isinstance(request.constraint, RequiredToolCalls) else None,
            aligner=aligner,
        )
        detokenizer = (
            self._primed_detokenizer(prompt.tokens) if prompt.continues_answer else self._tokenizer.detokenizer
        )
        return SequenceOutput(detokenizer, rules, self._splitter(request, prompt, calls))

    def prompt_logprobs(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> list[TokenLogprob]:
        """Build the log-probabilities of an echoed prompt: one score per token, None for the first."""
        return self._texts.token_logprobs(tokens, scores)

    def _call_format(self, request: GenerationRequest, prompt: EncodedPrompt) -> CallFormat:
        assert isinstance(request.prompt, ChatPrompt)
        if not request.prompt.tools or not request.parse_tool_calls or request.constraint is not None:
            return None
        return "own" if "own" in self._markers and not prompt.describes_tools else "fallback"

    def _call_parser(self, tools: list[Tool], calls: CallFormat) -> ToolCallParser:
        return ToolCallParser(tools, self._tokenizer.tool_parser if calls == "own" else None)

    def _splitter(self, request: GenerationRequest, prompt: EncodedPrompt, calls: CallFormat) -> Splitter | None:
        if not self._markers[calls]:
            return None
        initial = TEXT
        if prompt.starts_reasoning:
            initial = REASONING
        elif request.constraint is None and not prompt.continues_answer:
            # Some models begin an answer with headers, unless it is constrained.
            initial = self._tokenizer.response_initial_state or TEXT
        return Splitter(self._machines[calls], initial)

    def _primed_detokenizer(self, tokens: list[int]) -> Detokenizer:
        """Create a detokenizer that has seen the end of the prompt, so that it keeps a leading space of the output."""
        detokenizer: Detokenizer = self._tokenizer.detokenizer
        detokenizer.add_token(tokens[-1])
        detokenizer.finalize()
        _ = detokenizer.last_segment
        return detokenizer
