"""The observable state of the pool."""

import msgspec

from osaurusd.wire.admin import IN_MEMORY, WorkerState
from osaurusd.wire.groups import RankInfo
from osaurusd.wire.residency import LoadPhases


class MemoryBudget(msgspec.Struct, frozen=True):
    """Memory for all models, and the part that models hold."""

    total_bytes: int
    used_bytes: int


class WorkerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A model's worker at one moment; times are in seconds.

    Attributes:
        mlx_bytes: memory that MLX holds, including freed buffers.
        needs_bytes: the model's minimum memory; an estimate until its first load.
        limit_bytes: what the worker may use.
        reserved_bytes: what weights and running requests may grow to.
        held_bytes: the part of the budget that it holds.
        waiting: requests waiting for the model.
        running: requests that the worker processes.
        queued: requests that the worker has not begun to process.
        kv_cache_bytes: memory that the KV caches of running requests have reserved; None for models without one.
        kv_cache_limit_bytes: what they may reserve together.
        idle_left_seconds: time until the model is unloaded; None if it is in use or stays loaded.
        last_exit: how the model's worker last failed.
        ranks: the processes of a model that is distributed; empty for others.
    """

    key: str
    name: str
    state: WorkerState
    pid: int | None = None
    device: str | None = None
    mlx_bytes: int = 0
    needs_bytes: int = 0
    limit_bytes: int = 0
    reserved_bytes: int = 0
    held_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0
    running: int = 0
    queued: int = 0
    kv_cache_bytes: int | None = None
    kv_cache_limit_bytes: int = 0
    pinned: bool = False
    tokens_per_second: float = 0.0
    load_seconds: float | None = None
    phases: LoadPhases | None = None
    idle_seconds: float | None = None
    idle_left_seconds: float | None = None
    last_exit: str | None = None
    ranks: tuple[RankInfo, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether the model has a worker process or is about to get one."""
        return self.state in IN_MEMORY
