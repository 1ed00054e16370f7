"""What a first pass through a model shows of it."""

import time
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.engine.caches import Cache, Layout

# Long enough to be typical, short enough not to be noticed.
PROBE_TOKENS = 32

# Of a model that does not say; generous, for it only makes requests wait a little earlier.
ASSUMED_HEADS = 32

# Rounding to 16 bits, in kernels that differ with the number of rows, stays well below this.
SAME = 0.1
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Probe:
    """A model's caches and logits, and what a prompt token costs in time and memory.

    A pass takes `pass_seconds`, and `token_seconds` more for each token. `score_bytes` are those of the attention
    scores of one token with one other, 0 where they are never held at once. To probe also warms up what MLX compiles on
    first use.
    """

    layout: Layout
    vocabulary: int
    pass_seconds: float
    token_seconds: float
    bytes_per_token: int
    score_bytes: int

    @classmethod
    def of(cls, network: Any) -> "Probe":
        """Probe a network; raises what it raises."""
        _first_pass(network)  # compiles
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        started = time.perf_counter()
        cache, vocabulary = _first_pass(network)
        seconds = time.perf_counter() - started
        needed = mx.get_peak_memory() - before
        layout = _proven(network, Layout.of(cache))
        least = _seconds_of_one(network, cache)
        return cls(
            layout=layout,
            vocabulary=vocabulary,
            pass_seconds=least,
            token_seconds=max(seconds - least, seconds / 2) / PROBE_TOKENS,
            bytes_per_token=needed // PROBE_TOKENS,
            score_bytes=_attention_heads(network) * FLOAT32_BYTES,
        )


def _first_pass(network: Any) -> tuple[Cache, int]:
    """The cache that it filled, and the width of the logits."""
    cache, logits = _filled(network, PROBE_TOKENS)
    return cache, logits.shape[-1]


def _seconds_of_one(network: Any, cache: Cache) -> float:
    """What a pass over a single token takes, which is mostly the reading of the weights."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        mx.eval(network(mx.array([[0]]), cache=cache))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _filled(network: Any, count: int) -> tuple[Cache, mx.array]:
    """A cache of `count` tokens, and logits that are not computed yet."""
    cache: Cache = make_prompt_cache(network)
    logits = network(mx.arange(count)[None], cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache, logits


def _proven(network: Any, layout: Layout) -> Layout:
    """The layout with a way of merging caches that works: some models of mlx_lm read batches wrongly or not at all."""
    for candidate in (layout, replace(layout, grouped_masks=True)):
        if layout.batchable and _batches(network, candidate):
            return candidate
    return replace(layout, batchable=False)


def _batches(network: Any, layout: Layout) -> bool:
    """Whether two sequences of unlike length get together what each gets alone."""
    alone = [_filled(network, count)[0] for count in (PROBE_TOKENS, PROBE_TOKENS // 4)]
    token = mx.array([[PROBE_TOKENS]])
    try:
        together = network(mx.concatenate([token, token]), cache=layout.merge(alone))[:, -1, :]
        expected = mx.concatenate([network(token, cache=cache)[:, -1, :] for cache in alone])
        return bool((_distance(together, expected) < SAME).all().item())
    except Exception:  # noqa: BLE001  whatever a model raises on a batch: it is served one by one
        return False


def _distance(found: mx.array, expected: mx.array) -> mx.array:
    """How far logits [rows, vocabulary] are from what they should be, as a share of how far those are from even."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    spread = mx.linalg.norm(expected - mx.mean(expected, axis=-1, keepdims=True), axis=-1)
    return mx.linalg.norm(found - expected, axis=-1) / mx.maximum(spread, 1e-9)


def _attention_heads(network: Any) -> int:
    """Heads whose attention scores are held in memory for a whole pass: those of MLX's CPU backend."""
    if mx.default_device() != mx.cpu:
        return 0
    heads = getattr(getattr(network, "args", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else ASSUMED_HEADS
