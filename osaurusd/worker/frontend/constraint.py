"""Structured output: which tokens may come next so that the answer keeps to a JSON schema or to the form of calls."""

import json
from threading import Lock
from typing import Any

import llguidance.mlx
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import Location, OutputConstraint, RequiredToolCalls, Tool
from osaurusd.worker.frontend import grammar

Bitmask = NDArray[np.int32]


class ConstraintFailed(Exception):
    """A constraint cannot go on: it was given a token that it had not allowed, or hit a limit of llguidance."""


class Grammars:
    """Makes constraints for one model. Usable on any thread.

    Args:
        tokenizer: mlx_lm's wrapper around a tokenizer of the tokenizers library.
        vocabulary: width of the model's logits.
        end_tokens: token ids that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = max(tokenizer.get_vocab().values()) + 1
        self._width = max(vocabulary, self._ids)
        self._end_tokens = [token for token in end_tokens if 0 <= token < self._width]
        self._lock = Lock()
        self._made: LLTokenizer | None = None

    def compile(self, constraint: OutputConstraint, offered: list[Tool], *, thinking: bool) -> "Constraint":
        """A constraint for one sequence.

        Args:
            constraint: what the answer is to be.
            offered: the request's tools, among them all that `constraint` names.
            thinking: the answer begins inside a thought, and the constraint after it.

        Raises:
            InvalidRequest: the schema says what llguidance cannot hold an answer to; the message says what.
        """
        location: Location = ("prompt", "tools") if isinstance(constraint, RequiredToolCalls) else ("constraint",)
        rules = grammar.make(constraint, offered, after_thought=self._tokenizer.has_thinking)
        matcher = LLMatcher(self._llguidance(location), rules, log_level=0, limits=grammar.LIMITS)
        if matcher.is_error():
            raise grammar.refused(matcher.get_error(), location)
        return Constraint(matcher, self._width, self._thoughts(thinking=thinking))

    def _llguidance(self, location: Location) -> LLTokenizer:
        with self._lock:
            if self._made is None:
                try:
                    self._made = _llguidance_tokenizer(self._tokenizer, self._width, self._end_tokens)
                except Exception as error:  # of tokenizers there are more kinds than llguidance reads
                    raise InvalidRequest(
                        f"this model's tokenizer does not allow structured output: {error}", location=location
                    ) from error
            return self._made

    def _thoughts(self, *, thinking: bool) -> "Thoughts | None":
        if not self._tokenizer.has_thinking:
            return None
        free = np.zeros(self._width, bool)
        free[: self._ids] = True
        free[self._end_tokens] = False
        return Thoughts(
            start=tuple(self._tokenizer.think_start_tokens),
            end=tuple(self._tokenizer.think_end_tokens),
            row=_packed(free),
            within=thinking,
        )


class Thoughts:
    """Where in an answer the model thinks, and is held to nothing but going on.

    Args:
        start: tokens of the marker that a thought begins with.
        end: tokens of the marker at its end.
        row: what is allowed within: every token that does not end the answer.
        within: whether the answer begins there.
    """

    def __init__(self, start: tuple[int, ...], end: tuple[int, ...], row: Bitmask, *, within: bool) -> None:
        self._start = start
        self._end = end
        self._tail: tuple[int, ...] = ()
        self.row = row
        self.within = within
        self.may_begin = not within and len(start) == 1

    def take(self, token: int) -> bool:
        """Follow one token; whether it is part of the thought or of its markers."""
        if self.within:
            self._tail = (*self._tail, token)[-len(self._end) :]
            self.within = self._tail != self._end
            return True
        begins, self.may_begin = self.may_begin and token == self._start[0], False
        self.within = begins
        return begins

    def allow_begin(self, row: Bitmask) -> None:
        """Allow the marker that a thought begins with, too."""
        token = self._start[0]
        row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def fork(self) -> "Thoughts":
        copy = Thoughts(self._start, self._end, self.row, within=self.within)
        copy._tail, copy.may_begin = self._tail, self.may_begin
        return copy


class Constraint:
    """What one sequence may say next. Runs on one thread at a time.

    A model that thinks is held to it after its thought, which it may begin on its own as the first thing it does.
    """

    def __init__(self, matcher: LLMatcher, width: int, thoughts: Thoughts | None) -> None:
        self._matcher = matcher
        self._thoughts = thoughts
        self._row = np.zeros((1, (width + 31) // 32), np.int32)

    def advance(self, token: int) -> None:
        """Token `token` was chosen; end tokens need not be told.

        Raises:
            ConstraintFailed: it was not allowed.
        """
        if self._thoughts is not None and self._thoughts.take(token):
            return
        if not self._matcher.consume_token(token):
            raise ConstraintFailed(self._matcher.get_error())

    def fill(self, row: Bitmask) -> None:
        """Write which tokens may come next into `row`, of shape [ceil(vocabulary / 32)]: bit by bit, lowest first.

        End tokens are allowed exactly where the answer is complete.

        Raises:
            ConstraintFailed: no token may come next, or finding out took more than llguidance's limits.
        """
        if self._thoughts is not None and self._thoughts.within:
            row[:] = self._thoughts.row[: row.size]
            return
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._row)
        if self._matcher.is_error() or not self._row.any():
            raise ConstraintFailed(self._matcher.get_error() or "nothing that may come next is in the vocabulary")
        row[:] = self._row[0, : row.size]
        if self._thoughts is not None and self._thoughts.may_begin:
            self._thoughts.allow_begin(row)

    def fork(self) -> "Constraint":
        """An independent copy at the same place."""
        thoughts = None if self._thoughts is None else self._thoughts.fork()
        return Constraint(self._matcher.deep_copy(), self._row.shape[1] * 32, thoughts)


def apply(logits: mx.array, rows: Bitmask) -> mx.array:
    """Set the logits of forbidden tokens to -inf.

    Args:
        logits: of shape [sequences, vocabulary].
        rows: what `Constraint.fill` wrote, of shape [sequences, ceil(vocabulary / 32)].
    """
    if mx.metal.is_available():
        return llguidance.mlx.apply_token_bitmask(logits, rows)  # type: ignore[no-any-return]
    allowed = np.unpackbits(rows.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    return mx.where(mx.array(allowed.view(bool)), logits, -mx.inf)


def _packed(allowed: NDArray[np.bool_]) -> Bitmask:
    padded = np.zeros((allowed.size + 31) // 32 * 32, bool)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def _llguidance_tokenizer(tokenizer: Any, width: int, end_tokens: list[int]) -> LLTokenizer:
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    slices = LLTokenizer.json_slices()
    return LLTokenizer(json.dumps(described), n_vocab=width, eos_token=end_tokens, slices=slices)
