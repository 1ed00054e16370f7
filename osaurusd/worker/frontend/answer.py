"""From the tokens of one sequence to what is sent of it: text, reasoning, calls and likelihoods."""

from collections.abc import Sequence
from typing import Any, Protocol

from mlx_lm.generate import make_text_state_machine

from osaurusd.inference.events import TokenLogprob
from osaurusd.inference.request import ChatPrompt, GenerationRequest, RequiredToolCalls, Tool
from osaurusd.worker.frontend import likelihood
from osaurusd.worker.frontend.calls import CallReader, LiveCalls
from osaurusd.worker.frontend.content import Content, OutputDelta, Rules
from osaurusd.worker.frontend.likelihood import Ledger, Score, TokenTexts
from osaurusd.worker.frontend.markers import CALL, REASONING, TEXT, Segment, Splitter, markers, own_calls
from osaurusd.worker.frontend.prompts import Prompt

__all__ = ["OutputDelta", "SequenceOutput", "Speech"]


class Detokenizer(Protocol):
    """What mlx_lm's streaming detokenizers offer."""

    @property
    def last_segment(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


class SequenceOutput:
    """One sequence. All methods run on one thread; none of them computes with MLX.

    Args:
        detokenizer: a fresh one.
        rules: how to read the content.
        splitter: finds the markers that count; None if there are none.

    Attributes:
        reasoning_tokens: tokens that were thoughts, the marker at their end included.
    """

    def __init__(self, detokenizer: Detokenizer, rules: Rules, splitter: Splitter | None = None) -> None:
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._ledger = rules.ledger
        self._content = Content(rules)
        self._splitter = splitter
        # Most answers need nothing but their text.
        self._plain = not (any(rules.stop) or rules.ledger or rules.reader or rules.live or splitter)
        self._opening = ""
        self._block = ""
        self._newlines = ""
        self._after_marker = self._thinking

    @property
    def stopped(self) -> bool:
        """The answer is complete before its end token, by a stop string or a last call: the sequence must end."""
        return self._content.stopped

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the output, if one did."""
        return self._content.matched_stop

    @property
    def has_tool_calls(self) -> bool:
        """A call was told: the reason to finish is `tool_calls`, unless the answer was cut."""
        return self._content.has_tool_calls

    def add(self, token: int, score: Score | None = None) -> OutputDelta | None:
        """Take one token; return what is certain by now, None if nothing is."""
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        if self._plain:
            return OutputDelta(text=text) if text else None
        if self._ledger is not None:
            self._ledger.add(token, score, len(text))
        thinking = self._thinking
        self._split(text)
        self.reasoning_tokens += thinking or self._thinking
        return self._content.take_news()

    def finish(self, *, cut: bool) -> OutputDelta | None:
        """The rest, after the last token.

        Args:
            cut: the answer ended because there was no room for more, not by an end token. A call that is not complete
                is text then.
        """
        if self.stopped:
            return None
        self._detokenizer.finalize()
        text = self._detokenizer.last_segment
        if self._plain:
            return OutputDelta(text=text) if text else None
        if self._ledger is not None:
            self._ledger.extend(len(text))
        self._split(text)
        if not self._content.stopped and self._splitter is not None:
            self._handle(self._splitter.flush())
            self._end_block(self._splitter, cut=cut)
        if not self._content.stopped:
            self._content.finish(cut=cut)
        return self._content.take_news()

    @property
    def _thinking(self) -> bool:
        return self._splitter is not None and self._splitter.state == REASONING

    def _split(self, text: str) -> None:
        if self._splitter is None:
            self._content.say(text)
            return
        for segment in self._splitter.feed(text):
            self._handle(segment)
            if self.stopped:
                return

    def _handle(self, segment: Segment) -> None:
        if segment.state == TEXT:
            rest = self._without_first_newlines(segment.text)
            self._content.drop(len(segment.text) - len(rest))
            self._content.say(rest)
        elif segment.state == REASONING:
            self._think(segment.text)
        elif segment.state == CALL:
            self._block += segment.text
        else:
            self._content.drop(len(segment.text))
        if segment.after is not None and not self.stopped:
            self._cross(segment.state, segment.marker, segment.after)

    def _cross(self, before: str, marker: str, after: str) -> None:
        """A marker stands between the states `before` and `after`."""
        if before == CALL:
            self._end_call(marker)
            return
        self._content.pause(for_call=after == CALL)
        self._newlines = ""
        self._after_marker = REASONING in (before, after)
        if after == CALL:
            self._opening = marker
        else:
            self._content.drop(len(marker))

    def _think(self, text: str) -> None:
        """Newlines beside the markers belong to them."""
        self._content.drop(len(text))
        text = self._newlines + self._without_first_newlines(text)
        thought = text.rstrip("\n")
        self._newlines = text[len(thought) :]
        self._content.think(thought)

    def _without_first_newlines(self, text: str) -> str:
        if not self._after_marker:
            return text
        rest = text.lstrip("\n")
        self._after_marker = not rest
        return rest

    def _end_call(self, marker: str) -> None:
        block, self._block = self._block, ""
        self._content.call(block, f"{self._opening}{block}{marker}")

    def _end_block(self, splitter: Splitter, *, cut: bool) -> None:
        """The sequence ends within a call; models whose format has no second marker end all theirs so."""
        if splitter.state != CALL:
            return
        if cut:
            self._content.say(f"{self._opening}{self._block}")
        else:
            self._end_call("")


class Speech:
    """What a loaded model's tokens mean. Made once for each model; usable on any thread.

    Args:
        tokenizer: mlx_lm's wrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)
        self._own_calls = own_calls(tokenizer)
        self._markers = {calls: markers(tokenizer, calls=calls) for calls in (False, True)}
        self._machines = {calls: make_text_state_machine(found) for calls, found in self._markers.items()}

    def answer(self, order: GenerationRequest, prompt: Prompt) -> SequenceOutput:
        """A fresh answer to `order`, which was encoded as `prompt`."""
        stop = [*order.stop, *prompt.stop]
        ledger = None if order.logprobs is None else Ledger(self._texts)
        if not isinstance(order.prompt, ChatPrompt):
            return SequenceOutput(self._continuing(prompt.tokens), Rules(stop=stop, ledger=ledger))
        reads_calls = bool(order.prompt.tools) and order.parse_tool_calls and order.constraint is None
        rules = Rules(
            stop=stop,
            reader=self._reader(order.prompt.tools) if reads_calls else None,
            unmarked=reads_calls and not self._own_calls,
            max_calls=None if order.parallel_tool_calls else 1,
            live=LiveCalls() if isinstance(order.constraint, RequiredToolCalls) else None,
            ledger=ledger,
        )
        return SequenceOutput(self._tokenizer.detokenizer, rules, self._splitter(order, prompt, calls=reads_calls))

    def scored(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> list[TokenLogprob]:
        """An echoed prompt: tokens with their scores, one for each, None for the first."""
        return likelihood.scored(self._texts, tokens, scores)

    def _reader(self, tools: list[Tool]) -> CallReader:
        return CallReader(tools, self._tokenizer.tool_parser if self._own_calls else None)

    def _splitter(self, order: GenerationRequest, prompt: Prompt, *, calls: bool) -> Splitter | None:
        if not self._markers[calls]:
            return None
        initial = TEXT
        if prompt.thinking:
            initial = REASONING
        elif order.constraint is None:  # one that is constrained has no room for the headers that some models write
            initial = self._tokenizer.response_initial_state or TEXT
        return Splitter(self._machines[calls], initial)

    def _continuing(self, tokens: list[int]) -> Detokenizer:
        """A detokenizer that has seen the end of the prompt, so that it keeps a space that the answer begins with."""
        detokenizer: Detokenizer = self._tokenizer.detokenizer
        detokenizer.add_token(tokens[-1])
        detokenizer.finalize()
        _ = detokenizer.last_segment
        return detokenizer
