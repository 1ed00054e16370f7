"""Measuring a loaded model with short forward passes: cache layout, vocabulary, time and memory per token."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.worker.engine import kv_cache
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.kv_cache import Cache, CacheLayout

# Long enough to be representative, short enough not to delay the load noticeably.
PROBE_TOKENS = 32

# For models that do not report their number of heads. An overestimate only makes requests wait slightly earlier.
DEFAULT_HEADS = 32

# Relative error of batched logits. 16-bit rounding in kernels that differ with the number of rows stays well below it.
BATCH_TOLERANCE = 0.1
FLOAT32_BYTES = 4

# MLX's GPU kernels compute attention without holding its scores in memory for prompts of these head dimensions. Larger
# ones have kernels too, but MLX prefers not to use them.
FUSED_HEAD_DIMENSIONS = (64, 72, 80, 96, 128)

Agree = Callable[[bool], bool]
"""Decides something that must hold for all ranks of a group; returns whether it holds for all."""


@dataclass(frozen=True)
class Probe:
    """A model's caches and logits, and the time and memory per prompt token.

    Attributes:
        layout: layout of its caches.
        vocabulary: width of its logits.
        pass_seconds: fixed time of a forward pass.
        token_seconds: additional time per token.
        bytes_per_token: memory that a pass needs per token, in addition to weights and caches.
        score_bytes: memory of the attention scores of one token with one other; 0 if they are never held at once.
    """

    layout: CacheLayout
    vocabulary: int
    pass_seconds: float
    token_seconds: float
    bytes_per_token: int
    score_bytes: int

    @classmethod
    def from_network(cls, network: Any, device: Device = CPU, agree: Agree = bool) -> "Probe":
        """Measure a network. This also compiles what MLX compiles on first use.

        The number of passes does not depend on times, so that the ranks of a group can do this together.

        Args:
            network: an mlx_lm model.
            device: the device that MLX uses.
            agree: makes a decision for all ranks of a group.

        Raises:
            Exception: whatever the network raises on a prompt.
        """
        _fill_cache(network, PROBE_TOKENS)  # compiles
        # The faster of two passes: another program may slow one of them down.
        started = time.perf_counter()
        _fill_cache(network, PROBE_TOKENS)
        seconds = time.perf_counter() - started
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        started = time.perf_counter()
        cache, logits = _fill_cache(network, PROBE_TOKENS)
        seconds = min(seconds, time.perf_counter() - started)
        peak = mx.get_peak_memory() - before
        layout = _with_working_merge(network, CacheLayout.from_cache(cache), agree)
        pass_seconds = _pass_seconds(network, cache)
        return cls(
            layout=layout,
            vocabulary=logits.shape[-1],
            pass_seconds=pass_seconds,
            token_seconds=max(seconds - pass_seconds, seconds / 2) / PROBE_TOKENS,
            bytes_per_token=peak // PROBE_TOKENS,
            score_bytes=0 if device.is_gpu and _is_fused(cache) else _attention_heads(network) * FLOAT32_BYTES,
        )


def _fill_cache(network: Any, count: int) -> tuple[Cache, mx.array]:
    """Return a cache of `count` tokens, and logits that are not evaluated."""
    cache: Cache = make_prompt_cache(network)
    logits = network(mx.arange(count)[None], cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache, logits


def _pass_seconds(network: Any, cache: Cache) -> float:
    """Return the time of a pass over one token, most of which is spent reading the weights."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        mx.eval(network(mx.array([[0]]), cache=cache))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _with_working_merge(network: Any, layout: CacheLayout, agree: Agree) -> CacheLayout:
    """Choose a way of merging caches that works: some of mlx_lm's models compute batches wrongly or not at all."""
    batchable = agree(layout.batchable)
    for candidate in (layout, replace(layout, grouped_masks=True)):
        if batchable and agree(_batches_correctly(network, candidate)):
            return candidate
    return replace(layout, batchable=False)


def _batches_correctly(network: Any, layout: CacheLayout) -> bool:
    """Whether two sequences of different length yield the same logits in a batch as separately."""
    caches = [_fill_cache(network, count)[0] for count in (PROBE_TOKENS, PROBE_TOKENS // 4)]
    token = mx.array([[PROBE_TOKENS]])
    try:
        batched = _logits(network, mx.concatenate([token, token]), layout.merge(caches))
        separate = mx.concatenate([_logits(network, token, cache) for cache in caches])
        return bool((_relative_error(batched, separate) < BATCH_TOLERANCE).all().item())
    except Exception:  # noqa: BLE001  a model that raises anything on a batch is served one sequence at a time
        return False


def _logits(network: Any, tokens: mx.array, cache: Cache) -> mx.array:
    """Return the computed logits after `tokens`."""
    logits: mx.array = network(tokens, cache=cache)[:, -1, :]
    mx.eval(logits)  # passes of a group of ranks must not be computed at the same time
    return logits


def _relative_error(actual: mx.array, expected: mx.array) -> mx.array:
    """Return the distance of logits [rows, vocabulary] from the expected ones, relative to their spread."""
    actual, expected = actual.astype(mx.float32), expected.astype(mx.float32)
    spread = mx.linalg.norm(expected - mx.mean(expected, axis=-1, keepdims=True), axis=-1)
    return mx.linalg.norm(actual - expected, axis=-1) / mx.maximum(spread, 1e-9)


def _is_fused(cache: Cache) -> bool:
    """Whether a GPU computes all attention with the filled `cache` without holding scores in memory."""
    return all(keys == values and keys in FUSED_HEAD_DIMENSIONS for keys, values in kv_cache.head_dimensions(cache))


def _attention_heads(network: Any) -> int:
    """Return the number of heads whose scores a pass holds in memory at once."""
    heads = getattr(getattr(network, "args", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else DEFAULT_HEADS
