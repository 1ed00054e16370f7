"""Structured output: which tokens may come next so that the output matches a JSON schema or the form of tool calls."""

import json
import re
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import Location, OutputConstraint, RequiredToolCalls, TextChoice, Tool
from osaurusd.wire.errors import as_json
from osaurusd.worker.frontend import grammar
from osaurusd.worker.frontend.output_check import OutputCheck

Bitmask = NDArray[np.int32]


class ConstraintFailed(Exception):
    """A constraint cannot continue: a token was not allowed, or a limit of llguidance was reached."""


class ConstraintCompiler:
    """Compiles constraints for one model. Safe on any thread.

    Args:
        tokenizer: mlx_lm's wrapper of a tokenizer of the tokenizers library.
        vocabulary: width of the model's logits.
        end_tokens: token ids that end an output.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: list[int]) -> None:
        self._tokenizer = tokenizer
        self._id_count = max(tokenizer.get_vocab().values()) + 1
        self._width = max(vocabulary, self._id_count)
        self._end_tokens = [token for token in end_tokens if 0 <= token < self._width]
        added = tokenizer.added_tokens_decoder.values()
        special = [re.escape(token.content) for token in added if token.special and token.content]
        self._special_tokens = re.compile("|".join(special)) if special else None
        self._lock = Lock()
        self._guidance_tokenizer: LLTokenizer | None = None

    def compile(self, constraint: OutputConstraint, tools: list[Tool], *, starts_reasoning: bool) -> "Constraint":
        """Compile a constraint for one sequence.

        Args:
            constraint: what the output must be.
            tools: the request's tools; they include all that `constraint` names.
            starts_reasoning: the output begins inside reasoning; the constraint applies after it.

        Raises:
            InvalidRequest: llguidance cannot enforce the schema; the message states the reason.
        """
        location: Location = ("prompt", "tools") if isinstance(constraint, RequiredToolCalls) else ("constraint",)
        text, check = grammar.build_grammar(constraint, tools, allow_leading_newlines=self._tokenizer.has_thinking)
        self._check_literals(constraint, tools, location)
        matcher = LLMatcher(self._get_guidance_tokenizer(location), text, log_level=0, limits=grammar.LIMITS)
        if matcher.is_error():
            raise grammar.unusable_schema(matcher.get_error(), location)
        history = None if check is None else CheckedHistory(check, self._tokenizer.decode, self._end_tokens)
        return Constraint(matcher, self._width, self._reasoning_phase(starts_reasoning=starts_reasoning), history)

    def _check_literals(self, constraint: OutputConstraint, tools: list[Tool], location: Location) -> None:
        """Reject texts with special tokens: llguidance would force these tokens, which are not part of the output.

        Raises:
            InvalidRequest: a text contains one.
        """
        if self._special_tokens is None:
            return
        literals = grammar.find_literals(constraint, tools)
        if found := next(filter(None, map(self._special_tokens.search, literals)), None):
            reason = (
                f"{as_json(found.string[:100])} contains {as_json(found[0])}, which is a special token of the model"
            )
            if isinstance(constraint, TextChoice):
                raise InvalidRequest(reason, location=("constraint", "choices"))
            raise grammar.unusable_schema(reason, location)

    def _get_guidance_tokenizer(self, location: Location) -> LLTokenizer:
        with self._lock:
            if self._guidance_tokenizer is None:
                try:
                    self._guidance_tokenizer = _build_guidance_tokenizer(self._tokenizer, self._width, self._end_tokens)
                except Exception as error:  # llguidance reads only some kinds of tokenizers
                    raise InvalidRequest(
                        f"this model's tokenizer does not support structured output: {error}", location=location
                    ) from error
            return self._guidance_tokenizer

    def _reasoning_phase(self, *, starts_reasoning: bool) -> "ReasoningPhase | None":
        if not self._tokenizer.has_thinking:
            return None
        allowed = np.zeros(self._width, bool)
        allowed[: self._id_count] = True
        allowed[self._end_tokens] = False
        return ReasoningPhase(
            start=tuple(self._tokenizer.think_start_tokens),
            end=tuple(self._tokenizer.think_end_tokens),
            bitmask=_pack_bits(allowed),
            active=starts_reasoning,
        )


class ReasoningPhase:
    """Tracks whether a constrained output is inside reasoning, where every token except end tokens is allowed.

    Args:
        start: tokens of the start marker.
        end: tokens of the end marker.
        bitmask: the tokens that are allowed inside.
        active: the output begins inside reasoning.
    """

    def __init__(self, start: tuple[int, ...], end: tuple[int, ...], bitmask: Bitmask, *, active: bool) -> None:
        self._start = start
        self._end = end
        self._tail: tuple[int, ...] = ()
        self.bitmask = bitmask
        self.active = active
        self.may_start = not active and len(start) == 1

    def advance(self, token: int) -> bool:
        """Take one token. Return whether it belongs to the reasoning or its markers."""
        if self.active:
            self._tail = (*self._tail, token)[-len(self._end) :]
            self.active = self._tail != self._end
            return True
        self.active, self.may_start = self.may_start and token == self._start[0], False
        return self.active

    def allows(self, token: int) -> bool:
        """Whether `token` may come next while reasoning is active."""
        return bool(self.bitmask[token // 32] >> token % 32 & 1)

    def starts_with(self, token: int) -> bool:
        """Whether `token` is the start marker."""
        return (token,) == self._start

    def allow_start(self, bitmask: Bitmask) -> None:
        """Also allow the start marker."""
        token = self._start[0]
        bitmask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def fork(self) -> "ReasoningPhase":
        copy = ReasoningPhase(self._start, self._end, self.bitmask, active=self.active)
        copy._tail, copy.may_start = self._tail, self.may_start
        return copy


class CheckedHistory:
    """The tokens of an output whose grammar does not enforce all of its schema, and the check of the rest.

    Args:
        check: the check.
        decode: converts tokens to text.
        end_tokens: token ids that end an output.
    """

    def __init__(self, check: OutputCheck, decode: Callable[[list[int]], str], end_tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._check = check
        self._decode = decode
        self._end_tokens = end_tokens

    def verify(self, bitmask: Bitmask) -> None:
        """Check an output that is complete. A number that does not conform may continue, but must not end.

        Raises:
            ConstraintFailed: the output does not conform.
        """
        text = self._decode(self.tokens).rstrip()
        reason = self._check.check(text)
        if reason is None:
            return
        for token in self._end_tokens:
            bitmask.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFF_FFFF)
        if not text[-1].isdigit() or not bitmask.any():
            raise ConstraintFailed(reason)

    def fork(self) -> "CheckedHistory":
        copy = CheckedHistory(self._check, self._decode, self._end_tokens)
        copy.tokens = list(self.tokens)
        return copy


class Constraint:
    """The tokens that one sequence may continue with. Runs on one thread at a time.

    The constraint of a reasoning model applies after its reasoning, which the model may start by itself.

    Args:
        matcher: llguidance's state.
        width: width of the model's logits.
        reasoning: tracks the reasoning; None for other models.
        history: checks what the matcher does not enforce; None if there is nothing to check.
    """

    def __init__(
        self, matcher: LLMatcher, width: int, reasoning: ReasoningPhase | None, history: CheckedHistory | None = None
    ) -> None:
        self._matcher = matcher
        self._reasoning = reasoning
        self._history = history
        self._bitmask = np.zeros((1, (width + 31) // 32), np.int32)

    def advance(self, token: int) -> None:
        """Take a sampled token. End tokens can be left out.

        Raises:
            ConstraintFailed: the token was not allowed.
        """
        if self._reasoning is not None and self._reasoning.advance(token):
            return
        if not self._matcher.consume_token(token):
            raise ConstraintFailed(self._matcher.get_error())
        if self._history is not None:
            self._history.tokens.append(token)

    def allows(self, token: int) -> bool:
        """Whether `token` may come next. False if only `fill` can tell, which it can always."""
        if self._reasoning is not None:
            if self._reasoning.active:
                return self._reasoning.allows(token)
            if self._reasoning.may_start and self._reasoning.starts_with(token):
                return True
        if self._history is not None and self._matcher.is_accepting():
            return False
        return bool(self._matcher.validate_tokens([token]))

    def fill(self, bitmask: Bitmask) -> None:
        """Write the allowed tokens into `bitmask` of shape [ceil(vocabulary / 32)], lowest bit first.

        End tokens are allowed exactly where the output is complete.

        Raises:
            ConstraintFailed: no token is allowed, a limit of llguidance was reached, or the output is complete but does
                not conform to the schema.
        """
        if self._reasoning is not None and self._reasoning.active:
            bitmask[:] = self._reasoning.bitmask[: bitmask.size]
            return
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bitmask)
        if self._matcher.is_error() or not self._bitmask.any():
            raise ConstraintFailed(self._matcher.get_error() or "the vocabulary has no token that may come next")
        if self._history is not None and self._matcher.is_accepting():
            self._history.verify(self._bitmask[0])
        bitmask[:] = self._bitmask[0, : bitmask.size]
        if self._reasoning is not None and self._reasoning.may_start:
            self._reasoning.allow_start(bitmask)

    def fork(self) -> "Constraint":
        """Return an independent copy in the same state."""
        reasoning = None if self._reasoning is None else self._reasoning.fork()
        history = None if self._history is None else self._history.fork()
        return Constraint(self._matcher.deep_copy(), self._bitmask.shape[1] * 32, reasoning, history)


def apply(logits: mx.array, bitmasks: Bitmask) -> mx.array:
    """Set the logits of disallowed tokens to -inf. Made for GPUs.

    Args:
        logits: of shape [sequences, vocabulary].
        bitmasks: filled by `Constraint.fill`, of shape [sequences, ceil(vocabulary / 32)].
    """
    tokens = mx.arange(logits.shape[1], dtype=mx.uint32)
    words = mx.take(mx.array(bitmasks.view(np.uint32)), tokens // 32, axis=1)
    return _mask(logits, words, tokens % 32)


def compile_masks(vocabulary: int) -> None:
    """Compile what `apply` runs, for logits of all precisions, so that no request waits for it."""
    bitmask = np.full((1, -(-vocabulary // 32)), -1, np.int32)
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        mx.eval(apply(mx.zeros((1, vocabulary), dtype), bitmask))


@mx.compile
def _mask(logits: mx.array, words: mx.array, bits: mx.array) -> mx.array:
    return mx.where(mx.right_shift(words, bits) & 1, logits, -mx.inf)


def _pack_bits(allowed: NDArray[np.bool_]) -> Bitmask:
    padded = np.zeros((allowed.size + 31) // 32 * 32, bool)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def _build_guidance_tokenizer(tokenizer: Any, width: int, end_tokens: list[int]) -> LLTokenizer:
    definition = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    slices = LLTokenizer.json_slices()
    return LLTokenizer(json.dumps(definition), n_vocab=width, eos_token=end_tokens, slices=slices)
