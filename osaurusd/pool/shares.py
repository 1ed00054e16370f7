"""What a model is thought to need, and what its worker is told it may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from osaurusd.models.record import ModelRecord
from osaurusd.rpc import messages

FLOAT32_BYTES = 4

# A request of ordinary length, as the worker reckons too once it runs. Beside weights and its cache there are
# activations, which no file tells of.
ORDINARY_TOKENS = 2048
WEIGHTS_FACTOR = 1.05
CACHE_FACTOR = 1.33

# Of what a model may use beyond its needs: what it may keep of earlier prompts, and of buffers that MLX has freed.
PREFIX_PART = 2
FREED_PART = 4
LEAST_FREED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Share:
    """What each worker is told; see `messages.Load`. The bytes are the most that a worker gets, however much is spare."""

    dequantize: Literal["auto", "always", "never"] = "auto"
    cache_limit_bytes: int = 2**30
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


@dataclass(frozen=True)
class KeepAlive:
    """How long models stay once idle, in seconds, by name or repo and for all others; below 0 is for ever."""

    default: float = -1.0
    by_model: Mapping[str, float] = field(default_factory=dict)

    def of(self, record: ModelRecord) -> float | None:
        """For this model; None is for ever."""
        names = (record.name, record.repo.lower(), *record.aliases)
        seconds = next((value for name, value in self.by_model.items() if name.lower() in names), self.default)
        return forever_below_zero(seconds)


def forever_below_zero(seconds: float) -> float | None:
    """A keep-alive as the scheduler has it."""
    return None if seconds < 0 else seconds


def estimate(record: ModelRecord, share: Share, budget: int, *, on_cpu: bool) -> int:
    """Bytes that a model will need, as far as its files tell.

    Args:
        record: the model.
        share: says whether weights are widened to float32, as they are by default on a CPU if they fit the budget.
        budget: bytes for all models.
        on_cpu: whether workers compute on a CPU.
    """
    widened = (record.parameters or 0) * FLOAT32_BYTES
    widens = share.dequantize == "always" or (share.dequantize == "auto" and on_cpu and widened <= budget)
    weights = max(widened, record.memory.weights_bytes) if widens else record.memory.weights_bytes
    tokens = min(record.context_length or ORDINARY_TOKENS, ORDINARY_TOKENS)
    cache = (record.memory.cache_bytes_per_token or 0) * tokens * (2 if widens else 1)
    return int(weights * WEIGHTS_FACTOR + cache * CACHE_FACTOR)


def load_order(record: ModelRecord, share: Share, limits: messages.Limits) -> messages.Load:
    """The order to load a model within these limits."""
    return messages.Load(
        path=str(record.path),
        context_length=record.context_length,
        dequantize=share.dequantize,
        memory_limit_bytes=limits.memory_limit_bytes,
        cache_limit_bytes=limits.cache_limit_bytes,
        wired_limit_bytes=limits.wired_limit_bytes,
        prefix_cache_bytes=limits.prefix_cache_bytes,
        max_waiting=share.max_waiting,
        stall_seconds=share.stall_seconds,
    )


def limits(share: Share, limit_bytes: int, needs_bytes: int, *, wired: bool) -> messages.Limits:
    """How a worker is to divide what it may use.

    Args:
        share: the most that it gets of each kind.
        limit_bytes: what it may use in all.
        needs_bytes: what of that it cannot do without.
        wired: whether its memory is to be kept from being paged out, which only a GPU asks for.
    """
    spare = max(limit_bytes - needs_bytes, 0)
    return messages.Limits(
        memory_limit_bytes=limit_bytes,
        cache_limit_bytes=min(share.cache_limit_bytes, max(spare // FREED_PART, LEAST_FREED_BYTES)),
        wired_limit_bytes=limit_bytes if wired else None,
        prefix_cache_bytes=min(share.prefix_cache_bytes, spare // PREFIX_PART),
    )
