"""Sampling on a CPU, with NumPy. There, MLX is many times slower: 40 times for an exponential or a sort.

Each sequence is sampled separately, so that its tokens do not depend on the others.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine.sampler import MIN_LOGPROB, LogprobArrays, SamplingState
from osaurusd.worker.frontend.constraint import Bitmask

Floats = NDArray[np.float32]

# Tokens with at least this part of the highest probability nearly always have the probability `top_p` together.
_LIKELY = np.float32(1e-3)

# The square root of a usual size of a vocabulary.
_WIDTH = 256

# By the value of a byte of a bitmask: what to add to the logits of its eight tokens, of which the lowest bit is first.
_MASKS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf).astype(
    np.float32
)


def to_numpy(logits: mx.array) -> Floats:
    """Return computed logits without copying them, unless their precision is not float32."""
    logits = logits.astype(mx.float32)
    mx.eval(logits)  # other threads may run meanwhile
    return np.array(logits, copy=False)


def sample(
    states: Sequence[SamplingState], logits: Floats, bitmask: Callable[[int], Bitmask]
) -> tuple[mx.array, LogprobArrays | None]:
    """Sample one token for every row.

    Args:
        states: one per row.
        logits: the model's output [rows, vocabulary].
        bitmask: returns the allowed tokens of a constrained row. It is called only if the most likely one is not
            enough, because computing it takes much longer than checking one token.

    Returns:
        Token ids [rows], and the model's own log-probabilities of the rows that request them, before any bias, penalty
        or mask.
    """
    with np.errstate(all="ignore"):  # a broken model may return infinite logits
        tokens = np.array([_sample_row(state, logits[row], partial(bitmask, row)) for row, state in enumerate(states)])
    with_logprobs = [row for row, state in enumerate(states) if state.logprobs is not None]
    logprobs = None
    if with_logprobs:
        top = max(states[row].logprobs or 0 for row in with_logprobs)
        logprobs = compute_logprobs(logits[with_logprobs], tokens[with_logprobs], top, with_logprobs)
    return mx.array(tokens.astype(np.uint32)), logprobs


def compute_logprobs(logits: Floats, tokens: NDArray[np.signedinteger], top: int, rows: list[int]) -> LogprobArrays:
    """Return the log-probabilities of `tokens` [R] and of the `top` most likely tokens under `logits` [R, vocabulary].

    JSON has only finite numbers: -inf and NaN become the smallest float32.
    """
    top = min(top, logits.shape[-1] - 1)
    ids = np.argpartition(logits, -top, axis=-1)[:, -top:] if top else np.zeros((len(logits), 0), np.int64)
    with np.errstate(all="ignore"):
        highest = logits.max(axis=-1, keepdims=True)
        normalizers = highest + np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
        sampled = np.take_along_axis(logits, tokens[:, None], axis=-1) - normalizers
        alternatives = np.take_along_axis(logits, ids, axis=-1) - normalizers
    sampled, alternatives = (
        np.nan_to_num(each, nan=MIN_LOGPROB, neginf=MIN_LOGPROB) for each in (sampled, alternatives)
    )
    return LogprobArrays(rows, mx.array(sampled[:, 0]), mx.array(ids.astype(np.uint32)), mx.array(alternatives))


def _sample_row(state: SamplingState, logits: Floats, bitmask: Callable[[], Bitmask]) -> int:
    if state.takes_best:
        token = int(np.argmax(logits))
        if state.constraint is None or state.constraint.allows(token):
            return token
    if state.constraint is not None:
        logits = logits + np.take(_MASKS, bitmask().view(np.uint8), axis=0).reshape(-1)[: logits.size]
    if state.biased:
        logits = _apply_bias(state, logits)
    token = int(np.argmax(logits)) if state.greedy else _draw(state, logits)
    state.draws += not state.greedy
    if isinstance(state.penalties, _Penalties):
        state.penalties.counts[token] += 1
    return token


# Bias and penalties


@dataclass
class _Penalties:
    """The tokens that penalties apply to.

    Attributes:
        counts: how often each token was output.
        prompt: the tokens of the prompt, without duplicates.
    """

    counts: Counter[int]
    prompt: NDArray[np.int64]


def _apply_bias(state: SamplingState, logits: Floats) -> Floats:
    """Return a copy with bias and penalties applied."""
    logits = logits.copy()
    for token, value in state.params.logit_bias:
        logits[token] += value
    if state.penalized:
        if state.penalties is None:
            prompt = np.unique(np.asarray(state.prompt_tokens, np.int64))
            # Some tokenizers have ids beyond the logits.
            state.penalties = _Penalties(Counter(state.output_tokens), prompt[prompt < logits.size])
        _apply_penalties(state.params, logits, state.penalties)
    return logits


def _apply_penalties(params: SamplingParams, logits: Floats, penalties: _Penalties) -> None:
    output = np.fromiter(penalties.counts, np.int64)
    if params.repetition_penalty != 1:
        seen = np.union1d(output, penalties.prompt)
        repeated = logits[seen]
        logits[seen] = np.where(
            repeated > 0, repeated / params.repetition_penalty, repeated * params.repetition_penalty
        )
    counts = np.fromiter(penalties.counts.values(), np.float32)
    logits[output] -= params.frequency_penalty * counts + params.presence_penalty


# Random draws


def _draw(state: SamplingState, logits: Floats) -> int:
    """Draw a token from the softmax of the logits, without the tokens that the truncation removes."""
    params = state.params
    weights = logits - logits.max()
    if params.temperature != 1:
        weights *= np.float32(1 / params.temperature)
    np.exp(weights, out=weights)
    if state.truncated:
        weights *= weights >= _smallest_weight(params, weights)
    prepare_draw(state, weights.size)
    return draw_weighted(weights, state.noise)


def _smallest_weight(params: SamplingParams, weights: Floats) -> float:
    """Return the smallest weight that remains; the largest weight is 1.

    First, tokens below `min_p` of the most likely one are removed, then those after the first `top_k`, then those
    outside the smallest set with probability `top_p`. Ties with the last remaining token remain.
    """
    smallest = params.min_p
    if 0 < params.top_k < weights.size:
        weights = np.partition(weights, -params.top_k)[-params.top_k :]
        smallest = max(smallest, float(weights.min()))
    if params.top_p < 1:
        remaining = weights[weights >= smallest] if smallest > 0 else weights
        smallest = max(smallest, _smallest_in_nucleus(params.top_p, remaining))
    return smallest


def _smallest_in_nucleus(top_p: float, weights: Floats) -> float:
    """Return the smallest weight of the smallest set with probability `top_p`."""
    total = float(weights.sum())
    likely = weights[weights >= _LIKELY]
    ranked = np.sort(likely if likely.sum() >= top_p * total else weights)[::-1]
    last = int(np.searchsorted(np.cumsum(ranked, dtype=np.float64), top_p * total))
    return float(ranked[min(last, ranked.size - 1)])  # rounding errors can prevent that the sum reaches the total


class Noise:
    """The random numbers of one draw.

    Args:
        bits: determine the numbers.
        vocabulary: how many tokens there are.
    """

    def __init__(self, bits: int, vocabulary: int) -> None:
        self.bits = bits
        generator = np.random.Generator(np.random.SFC64(bits))
        # Their minimum avoids divisions by zero.
        self.columns, self.rows = (
            np.maximum(generator.standard_exponential(count, np.float32), np.finfo(np.float32).tiny)
            for count in (_WIDTH, -(-vocabulary // _WIDTH))
        )


def prepare_draw(state: SamplingState, vocabulary: int) -> None:
    """Create the random numbers of the next draw, which takes a fifth of the time of the draw."""
    bits = state.random_bits()
    if state.noise is None or state.noise.bits != bits:
        state.noise = Noise(bits, vocabulary)


def draw_weighted(weights: Floats, noise: Noise) -> int:
    """Return an index with a probability proportional to its weight.

    First, a column of the weights in rows of `_WIDTH` is drawn by its sum, then an index of the column. This takes few
    random numbers, of which each costs more than all other operations on a weight. Sums of columns are fast.

    Each weight is divided by an exponential random number; the largest quotient wins. The rounding errors of the
    weights depend on the other rows of the batch. They would often change the result of a search in the cumulative
    sum, and hardly ever change which quotient is the largest.
    """
    rows = weights.size // _WIDTH
    sums = weights[: rows * _WIDTH].reshape(rows, _WIDTH).sum(axis=0)
    rest = weights[rows * _WIDTH :]
    sums[: rest.size] += rest
    column = int(np.argmax(sums / noise.columns))
    candidates = weights[column::_WIDTH]
    return column + _WIDTH * int(np.argmax(candidates / noise.rows[: candidates.size]))
