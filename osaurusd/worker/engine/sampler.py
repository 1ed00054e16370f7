"""Sampling the next tokens of a batch: each sequence by its own parameters, all in one computation with MLX."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.frontend.constraint import Constraint
from osaurusd.worker.frontend.logprobs import Score

# Below this, dividing by the temperature overflows float32 long before it changes the result.
GREEDY_BELOW = 1e-4

_MASK_64 = 0xFFFF_FFFF_FFFF_FFFF

MIN_LOGPROB = float(np.finfo(np.float32).min)


@dataclass(eq=False)
class SamplingState:
    """How one sequence is sampled, and its state between two draws.

    Attributes:
        prompt_tokens, output_tokens: the tokens before the first draw, for penalties.
        constraint: restricts the tokens that may come next.
        logprobs: how many alternatives to report with each sampled token; None disables log-probabilities.
        entropy: replaces the seed of a request without one.
        index: of the choice, so that the choices of a request with one seed differ.
        draws: how many tokens were sampled, which numbers the random keys.
        penalties: what the sampler keeps for penalties between two draws.
        noise: the random numbers of the next draw, if the sampler has created them early.
    """

    params: SamplingParams
    prompt_tokens: Sequence[int] = ()
    output_tokens: Sequence[int] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None
    entropy: int = 0
    index: int = 0
    draws: int = 0
    penalties: Any = field(default=None, repr=False)
    noise: Any = field(default=None, repr=False)

    @property
    def greedy(self) -> bool:
        return self.params.temperature < GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        params = self.params
        return bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)

    @property
    def biased(self) -> bool:
        """Whether the logits are changed before sampling."""
        return self.penalized or bool(self.params.logit_bias)

    @property
    def truncated(self) -> bool:
        params = self.params
        return params.top_p < 1 or params.top_k > 0 or params.min_p > 0

    @property
    def takes_best(self) -> bool:
        """Whether the most likely token is taken, of those that the constraint allows."""
        return self.greedy and not self.biased

    @property
    def plain(self) -> bool:
        """Whether the most likely token is taken."""
        return self.takes_best and self.constraint is None

    def rewind(self, output_tokens: Sequence[int]) -> None:
        """Continue after `output_tokens`, discarding later draws."""
        self.output_tokens, self.draws = list(output_tokens), len(output_tokens)
        self.penalties = None

    def random_key(self) -> tuple[int, int]:
        """Return the key of the next draw, which depends on nothing else in the batch."""
        bits = self.random_bits()
        return bits >> 32, bits & 0xFFFF_FFFF

    def random_bits(self) -> int:
        """Return 64 random bits of the next draw, which depend on nothing else in the batch."""
        seed = self.entropy if self.params.seed is None else self.params.seed
        return _mix(_mix(_mix(seed & _MASK_64) + self.index) + self.draws)


@dataclass(frozen=True)
class LogprobArrays:
    """Log-probabilities of the rows [R] that request them, as arrays until they are needed.

    Attributes:
        rows: the rows of the batch.
        sampled: of the sampled token [R].
        top_ids, top_logprobs: of the most likely tokens [R, K], in no particular order.
    """

    rows: list[int]
    sampled: mx.array
    top_ids: mx.array
    top_logprobs: mx.array

    @classmethod
    def empty(cls) -> "LogprobArrays":
        return cls([], mx.zeros((0,)), mx.zeros((0, 0), mx.uint32), mx.zeros((0, 0)))

    @property
    def arrays(self) -> list[mx.array]:
        return [self.sampled, self.top_ids, self.top_logprobs]

    def scores(self) -> list[Score]:
        """Return one score per row, most likely tokens first."""
        columns: list[Any] = [array.tolist() for array in self.arrays]
        return [
            Score(sampled, sorted(zip(ids, logprobs, strict=True), key=lambda pair: -pair[1]))
            for sampled, ids, logprobs in zip(*columns, strict=True)
        ]

    def filter(self, keep: list[int]) -> "LogprobArrays | None":
        """Return the log-probabilities after the batch was reduced to the rows `keep`."""
        positions = [position for position, row in enumerate(self.rows) if row in keep]
        if not positions:
            return None
        index = mx.array(positions)
        rows = [keep.index(self.rows[position]) for position in positions]
        return LogprobArrays(rows, self.sampled[index], self.top_ids[index], self.top_logprobs[index])

    def extend(self, other: "LogprobArrays", offset: int) -> "LogprobArrays":
        """Append the log-probabilities of another batch, whose rows now start at `offset`."""
        width = max(self.top_ids.shape[1], other.top_ids.shape[1])
        return LogprobArrays(
            self.rows + [row + offset for row in other.rows],
            mx.concatenate([self.sampled, other.sampled]),
            mx.concatenate([_pad(self.top_ids, width, 0), _pad(other.top_ids, width, 0)]),
            mx.concatenate([_pad(self.top_logprobs, width, -np.inf), _pad(other.top_logprobs, width, -np.inf)]),
        )


def compute_logprobs(logits: mx.array, tokens: mx.array, top: int, rows: list[int]) -> LogprobArrays:
    """Return the log-probabilities of `tokens` [R] and of the `top` most likely tokens under `logits` [R, vocabulary].

    JSON has only finite numbers: -inf and NaN become the smallest float32.
    """
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    sampled = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    top = min(top, logits.shape[-1] - 1)
    ids = mx.argpartition(-logprobs, kth=max(top - 1, 0), axis=-1)[:, :top]
    return LogprobArrays(rows, _finite(sampled), ids, _finite(mx.take_along_axis(logprobs, ids, axis=-1)))


def gather_logprobs(logits: mx.array, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probabilities of the tokens of each row under `logits` [R, vocabulary]."""
    logits = logits.astype(mx.float32)
    logprobs = _finite(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    gathered = mx.concatenate([logprobs[row][mx.array(list(ids))] for row, ids in enumerate(tokens)])
    values: Iterator[float] = iter(gathered.tolist())  # type: ignore[arg-type]
    return [[next(values) for _ in ids] for ids in tokens]


class BatchSampler:
    """Samples one token for every row of a batch; rebuilt whenever rows join or leave.

    Args:
        states: one per row.
    """

    def __init__(self, states: Sequence[SamplingState]) -> None:
        self._states = list(states)
        self._with_logprobs = [row for row, state in enumerate(states) if state.logprobs is not None]
        # Copying the logits of other rows would cost more than sampling.
        self._special = [row for row, state in enumerate(states) if not state.plain]
        chosen = [self._states[row] for row in self._special]
        self._masked = [position for position, state in enumerate(chosen) if state.constraint is not None]
        self._biased = [position for position, state in enumerate(chosen) if state.biased]
        self._random = [position for position, state in enumerate(chosen) if not state.greedy]

    def sample(self, logits: mx.array, masked: mx.array | None = None) -> tuple[mx.array, LogprobArrays | None]:
        """Sample one token for every row.

        Args:
            logits: the model's output [rows, vocabulary].
            masked: the logits of the constrained rows with forbidden tokens at -inf, if there are such rows.

        Returns:
            Token ids [rows], and the model's own log-probabilities, before any bias, penalty or mask.
        """
        tokens = self._sample_tokens(logits, masked)
        self._update_states(tokens)
        return tokens, self._logprobs(logits, tokens) if self._with_logprobs else None

    def _sample_tokens(self, logits: mx.array, masked: mx.array | None) -> mx.array:
        if not self._special:
            return mx.argmax(logits, axis=-1)
        if len(self._special) == len(self._states):
            return self._draw(self._adjusted(logits, masked))
        special = self._draw(self._adjusted(logits[mx.array(self._special)], masked))
        return _replace_rows(mx.argmax(logits, axis=-1), self._special, special)

    def _adjusted(self, logits: mx.array, masked: mx.array | None) -> mx.array:
        """Apply masks, bias and penalties to the logits of the special rows."""
        if masked is not None:
            logits = _replace_rows(logits, self._masked, masked)
        if self._biased:
            logits = logits.astype(mx.float32)  # half precision would lose small penalties
            biased = [_apply_bias(self._state(position), logits[position]) for position in self._biased]
            logits = _replace_rows(logits, self._biased, mx.concatenate(biased))
        return logits

    def _draw(self, logits: mx.array) -> mx.array:
        """Return tokens for the special rows."""
        if not self._random:
            return mx.argmax(logits, axis=-1)
        everything = len(self._random) == len(self._special)
        scaled = logits if everything else logits[mx.array(self._random)]
        scaled = _scale(scaled, self._inverse_temperatures)
        for truncation in self._truncations:
            scaled = truncation(scaled)
        drawn = self._draw_random(scaled)
        return drawn if everything else _replace_rows(mx.argmax(logits, axis=-1), self._random, drawn)

    def _draw_random(self, logits: mx.array) -> mx.array:
        keys = [self._state(position).random_key() for position in self._random]
        return _draw_with_keys(logits, mx.array(np.array(keys, np.uint32)))

    def _state(self, position: int) -> SamplingState:
        return self._states[self._special[position]]

    def _update_states(self, tokens: mx.array) -> None:
        for position in self._random:
            self._state(position).draws += 1
        for position in self._biased:
            state = self._state(position)
            if isinstance(state.penalties, _Penalties):
                state.penalties.count(tokens[self._special[position]])

    def _logprobs(self, logits: mx.array, tokens: mx.array) -> LogprobArrays:
        top = max(self._states[row].logprobs or 0 for row in self._with_logprobs)
        index = mx.array(self._with_logprobs)
        return compute_logprobs(logits[index], tokens[index], top, self._with_logprobs)

    @cached_property
    def _inverse_temperatures(self) -> mx.array:
        return mx.array([[1 / self._state(position).params.temperature] for position in self._random], mx.float32)

    @cached_property
    def _truncations(self) -> list["_Truncation"]:
        """The truncated random rows, grouped by the filters they use: only `top_p` sorts the whole vocabulary."""
        groups: dict[tuple[bool, bool], list[tuple[int, SamplingParams]]] = {}
        for number, position in enumerate(self._random):
            state = self._state(position)
            if state.truncated:
                params = state.params
                groups.setdefault((params.top_k > 0, params.top_p < 1), []).append((number, params))
        return [_Truncation(group, len(self._random)) for group in groups.values()]


class _Truncation:
    """Removes unlikely tokens: first those below `min_p` of the most likely one, then those after the first `top_k`,
    then those outside the smallest set with probability `top_p`. Ties with the last remaining token remain.
    """

    def __init__(self, rows: Sequence[tuple[int, SamplingParams]], total: int) -> None:
        self._rows = None if len(rows) == total else [row for row, _ in rows]
        params = [params for _, params in rows]
        self._top_k = [row.top_k for row in params]
        self._needs_order = any(row.top_p < 1 or row.top_k for row in params)
        self._ranks = mx.array([[row.top_k or 2**30] for row in params])
        self._top_p = mx.array([[row.top_p] for row in params], mx.float32)
        self._log_min_p = mx.array([[np.log(row.min_p) if row.min_p else -np.inf] for row in params], mx.float32)

    def __call__(self, logits: mx.array) -> mx.array:
        """Return the logits with removed tokens at -inf."""
        rows = logits if self._rows is None else logits[mx.array(self._rows)]
        rows = _remove_below(rows, mx.max(rows, axis=-1, keepdims=True) + self._log_min_p)
        if self._needs_order:
            threshold = _threshold(self._sorted(rows), self._ranks, self._top_p)
            rows = _remove_below(rows, threshold)
        return rows if self._rows is None else _replace_rows(logits, self._rows, rows)

    def _sorted(self, rows: mx.array) -> mx.array:
        """Return the logits in descending order, up to the largest `top_k` if every row has one."""
        limit = max(self._top_k)
        if all(self._top_k) and limit < rows.shape[-1]:
            rows = mx.topk(rows, limit, axis=-1)
        return -mx.sort(-rows, axis=-1)


@mx.compile
def _scale(logits: mx.array, inverse_temperatures: mx.array) -> mx.array:
    return logits.astype(mx.float32) * inverse_temperatures


@mx.compile
def _remove_below(logits: mx.array, threshold: mx.array) -> mx.array:
    return mx.where(logits >= threshold, logits, -mx.inf)


@mx.compile
def _threshold(ranked: mx.array, ranks: mx.array, top_p: mx.array) -> mx.array:
    """Return the logit of the last token that remains [rows, 1], given logits in descending order."""
    probabilities = mx.softmax(mx.where(mx.arange(ranked.shape[-1]) < ranks, ranked, -mx.inf), axis=-1)
    preceding = mx.cumsum(probabilities, axis=-1) - probabilities
    # `preceding` is 0 for the most likely token, which therefore always remains.
    remains = (preceding < top_p) & (probabilities > 0)
    return mx.min(mx.where(remains, ranked, mx.inf), axis=-1, keepdims=True)


@mx.compile
def _draw_with_keys(logits: mx.array, keys: mx.array) -> mx.array:
    """Draw a token for each row: the argmax of logits plus Gumbel noise is a draw from the softmax."""
    noise = mx.vmap(lambda key: mx.random.gumbel((logits.shape[-1],), key=key))(keys)
    return mx.argmax(logits + noise, axis=-1)


def _apply_bias(state: SamplingState, logits: mx.array) -> mx.array:
    """Apply bias and penalties to the logits [vocabulary] of one row; returns [1, vocabulary]."""
    if state.params.logit_bias:
        ids, values = zip(*state.params.logit_bias, strict=True)
        logits = logits.at[mx.array(ids)].add(mx.array(values, logits.dtype))
    if state.penalized:
        if state.penalties is None:
            state.penalties = _Penalties(logits.size, state.prompt_tokens, state.output_tokens)
        logits = state.penalties.apply(state.params, logits)
    return logits[None]


class _Penalties:
    """The tokens that penalties apply to.

    Args:
        vocabulary: width of the logits.
        prompt: tokens of the prompt.
        output: tokens of the output so far.
    """

    def __init__(self, vocabulary: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        self._counts = mx.zeros(vocabulary, mx.float32)
        self._in_prompt = mx.zeros(vocabulary, mx.bool_)
        if output:
            self._counts = self._counts.at[mx.array(list(output))].add(1)
        if prompt:
            self._in_prompt[mx.array(list(set(prompt)))] = True

    def count(self, token: mx.array) -> None:
        """Add a token to the output."""
        self._counts = self._counts.at[token].add(1)

    def apply(self, params: SamplingParams, logits: mx.array) -> mx.array:
        """Return the logits [vocabulary] with penalties."""
        in_output = self._counts > 0
        if params.repetition_penalty != 1:
            penalized = mx.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits = mx.where(in_output | self._in_prompt, penalized, logits)
        return logits - params.frequency_penalty * self._counts - params.presence_penalty * in_output


def _replace_rows(array: mx.array, rows: list[int], values: mx.array) -> mx.array:
    if len(rows) == array.shape[0]:
        return values
    replaced = array[:]
    replaced[mx.array(rows)] = values.astype(array.dtype)
    return replaced


def _finite(logprobs: mx.array) -> mx.array:
    return mx.nan_to_num(logprobs, nan=MIN_LOGPROB, neginf=MIN_LOGPROB)


def _pad(columns: mx.array, width: int, value: float) -> mx.array:
    return mx.pad(columns, [(0, 0), (0, width - columns.shape[1])], constant_values=mx.array(value, columns.dtype))


def _mix(value: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014): maps consecutive numbers to unrelated ones."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK_64
    return value ^ (value >> 31)
