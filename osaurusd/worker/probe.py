"""What a first pass through a model shows of it."""

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.caches import Cache, Layout

# Long enough to be typical, short enough not to be noticed.
PROBE_TOKENS = 32

# Of a model that does not say; generous, for it only makes requests wait a little earlier.
ASSUMED_HEADS = 32
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Probe:
    """A model's caches and logits, and what a prompt token costs in time and memory.

    `score_bytes` are those of the attention scores of one token with one other, 0 where they are never held at once.
    To probe also warms up what MLX compiles on first use.
    """

    layout: Layout
    vocabulary: int
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
        return cls(
            layout=Layout.of(cache),
            vocabulary=vocabulary,
            token_seconds=seconds / PROBE_TOKENS,
            bytes_per_token=needed // PROBE_TOKENS,
            score_bytes=_attention_heads(network) * FLOAT32_BYTES,
        )


def _first_pass(network: Any) -> tuple[Cache, int]:
    """The cache that it filled, and the width of the logits."""
    cache: Cache = make_prompt_cache(network)
    logits = network(mx.array([[0] * PROBE_TOKENS]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache, logits.shape[-1]


def _attention_heads(network: Any) -> int:
    """Heads whose attention scores are held in memory for a whole pass: those of MLX's CPU backend."""
    if mx.default_device() != mx.cpu:
        return 0
    heads = getattr(getattr(network, "args", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else ASSUMED_HEADS
