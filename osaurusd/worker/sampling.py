"""Choosing the next token."""

from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler

from osaurusd import ipc

Sampler = Callable[[mx.array], mx.array]
"""From log-probabilities of shape [sequences, vocabulary] to token ids of shape [sequences]."""

# Below this the division by the temperature overflows float32 long before it changes the choice.
GREEDY_BELOW = 1e-4


def make_sampler(sampling: ipc.Sampling) -> Sampler:
    """The sampler for one sequence.

    Equal requests without a seed share one object, which lets the generator sample them in one batched call.
    """
    if sampling.temperature < GREEDY_BELOW:
        return greedy_sampler  # type: ignore[no-any-return]
    if sampling.seed is None:
        return _shared(sampling.temperature, sampling.top_p)
    return Seeded(sampling.temperature, sampling.top_p, sampling.seed)


@lru_cache(maxsize=256)
def _shared(temperature: float, top_p: float) -> Sampler:
    def sample(logprobs: mx.array) -> mx.array:
        return mx.random.categorical(_shape(logprobs, temperature, top_p))

    return sample


class Seeded:
    """Samples one sequence with a random state of its own, so that its neighbours in the batch do not matter."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._key = mx.random.key(seed & 0xFFFF_FFFF_FFFF_FFFF)

    def __call__(self, logprobs: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(_shape(logprobs, self._temperature, self._top_p), key=key)


def _shape(logprobs: mx.array, temperature: float, top_p: float) -> mx.array:
    """Apply the temperature, then keep the smallest set of tokens that holds `top_p` of the probability."""
    scaled = logprobs * (1 / temperature)
    if top_p >= 1:
        return scaled
    return _nucleus(scaled - mx.logsumexp(scaled, axis=-1, keepdims=True), top_p)


def _nucleus(logprobs: mx.array, top_p: float) -> mx.array:
    # mlx_lm's `apply_top_p` is compiled anew for each value, which on a CPU stalls every stream for a second.
    order = mx.argsort(-logprobs, axis=-1)
    ranked = mx.take_along_axis(logprobs, order, axis=-1)
    probabilities = mx.exp(ranked)
    likelier = mx.cumsum(probabilities, axis=-1) - probabilities
    kept = mx.where(likelier < top_p, ranked, -mx.inf)
    return mx.put_along_axis(logprobs, order, kept, axis=-1)
