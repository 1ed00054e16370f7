"""Memory estimates for models, and the division of a worker's memory limit."""

from osaurusd.models.record import ModelRecord
from osaurusd.pool.config import WorkerLimits
from osaurusd.rpc import messages

FLOAT32_BYTES = 4

# An ordinary request, as the worker assumes too. The factors cover activations, which no file describes.
ORDINARY_TOKENS = 2048
WEIGHTS_FACTOR = 1.05
CACHE_FACTOR = 1.33

# Divisors of the memory beyond a model's needs: limits of the prefix cache and of freed buffers that MLX keeps.
PREFIX_CACHE_DIVISOR = 2
FREED_BUFFERS_DIVISOR = 4
MIN_FREED_BUFFERS_BYTES = 16 * 1024 * 1024


def estimate_bytes(record: ModelRecord, limits: WorkerLimits, budget: int, *, on_cpu: bool) -> int:
    """Estimate the minimum memory of a model from its files.

    Args:
        record: the model.
        limits: decide whether the weights are converted to float32.
        budget: bytes for all models; by default, weights are converted on a CPU only if they fit.
        on_cpu: whether workers compute on a CPU.
    """
    float32_bytes = (record.parameters or 0) * FLOAT32_BYTES
    converts = limits.dequantize == "always" or (limits.dequantize == "auto" and on_cpu and float32_bytes <= budget)
    weights = max(float32_bytes, record.memory.weights_bytes) if converts else record.memory.weights_bytes
    if record.runner == "encoder":
        return int(weights * WEIGHTS_FACTOR + record.memory.pass_bytes_per_token * ORDINARY_TOKENS)
    tokens = min(record.context_length or ORDINARY_TOKENS, ORDINARY_TOKENS)
    cache = (record.memory.cache_bytes_per_token or 0) * tokens * (2 if converts else 1)
    return int(weights * WEIGHTS_FACTOR + cache * CACHE_FACTOR)


def build_load(record: ModelRecord, limits: WorkerLimits, memory: messages.Limits) -> messages.Load:
    """Build the request to load a model within these limits."""
    return messages.Load(
        path=str(record.path),
        task=record.task if record.runner == "encoder" else "generate",
        vision=record.runner == "vision",
        pipeline=record.pipeline,
        context_length=record.context_length,
        dequantize=limits.dequantize,
        memory_limit_bytes=memory.memory_limit_bytes,
        cache_limit_bytes=memory.cache_limit_bytes,
        prefix_cache_bytes=memory.prefix_cache_bytes,
        max_waiting=limits.max_waiting,
        stall_seconds=limits.stall_seconds,
        feature_cache_bytes=limits.feature_cache_bytes,
        max_image_pixels=limits.max_image_pixels,
        wire=limits.wire,
    )


def build_limits(limits: WorkerLimits, limit_bytes: int, needs_bytes: int) -> messages.Limits:
    """Divide a worker's limit among the model, the prefix cache and freed buffers.

    Args:
        limits: upper limits of each part.
        limit_bytes: what the worker may use.
        needs_bytes: the model's minimum memory.
    """
    rest = max(limit_bytes - needs_bytes, 0)
    return messages.Limits(
        memory_limit_bytes=limit_bytes,
        cache_limit_bytes=min(limits.cache_limit_bytes, max(rest // FREED_BUFFERS_DIVISOR, MIN_FREED_BUFFERS_BYTES)),
        prefix_cache_bytes=min(limits.prefix_cache_bytes, rest // PREFIX_CACHE_DIVISOR),
    )
