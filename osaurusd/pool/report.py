"""How workers are, for those who ask."""

import asyncio
from dataclasses import dataclass

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.pool.resident import Cause, Failure, Resident
from osaurusd.pool.scheduler import Scheduler
from osaurusd.rpc import messages
from osaurusd.rpc.process import WorkerProcess
from osaurusd.wire.admin import IN_MEMORY, WorkerState
from osaurusd.wire.residency import LoadPhases


@dataclass(eq=False)
class Slot:
    """What the pool keeps for a model whose worker runs; `told` are the limits that it was told last."""

    name: str
    starting: asyncio.Task[WorkerProcess]
    started_at: float
    told: messages.Limits
    worker: WorkerProcess | None = None
    load_seconds: float | None = None
    stopped_for: OsaurusError | None = None
    cause: Cause | None = None


@dataclass(frozen=True)
class Budget:
    """Bytes for all models, and what of it they hold."""

    total_bytes: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """A worker as it is now. Bytes are what MLX holds, what it was thought to need, may use, and has promised to
    requests; times are seconds."""

    key: str
    name: str
    state: WorkerState
    pid: int | None = None
    device: str | None = None
    mlx_bytes: int = 0
    needs_bytes: int = 0
    limit_bytes: int = 0
    reserved_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0
    pinned: bool = False
    tokens_per_second: float = 0.0
    load_seconds: float | None = None
    phases: LoadPhases | None = None
    idle_seconds: float | None = None
    idle_left_seconds: float | None = None
    last_exit: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a process, or about to be."""
        return self.state in IN_MEMORY


def of_resident(resident: Resident, name: str, slot: Slot | None, scheduler: Scheduler, now: float) -> WorkerReport:
    """The report on a model that is in memory or waits to be."""
    worker = slot.worker if slot else None
    pinned = resident.key in scheduler.pinned
    failure = scheduler.failures.get(resident.key)
    stats = worker.client.stats if worker else messages.Stats(active_bytes=0, cache_bytes=0)
    return WorkerReport(
        key=resident.key,
        name=name,
        state=resident.state,
        pid=worker.pid if worker else None,
        device=worker.loaded.device if worker else None,
        mlx_bytes=stats.active_bytes + stats.cache_bytes,
        needs_bytes=resident.needs_bytes,
        limit_bytes=resident.limit_bytes,
        reserved_bytes=resident.reserved_bytes,
        in_flight=resident.in_flight,
        waiting=len(resident.waiting),
        pinned=pinned,
        tokens_per_second=worker.client.tally.rate() if worker else 0.0,
        load_seconds=slot.load_seconds if slot else None,
        phases=_phases(worker) if worker else None,
        idle_seconds=_idle(resident, now),
        idle_left_seconds=None if pinned or resident.idle_until is None else max(resident.idle_until - now, 0.0),
        last_exit=failure.error.message if failure else None,
    )


def of_failure(key: str, name: str, failure: Failure, *, pinned: bool) -> WorkerReport:
    """The report on a model whose worker ended by itself."""
    return WorkerReport(key=key, name=name, state=WorkerState.FAILED, pinned=pinned, last_exit=failure.error.message)


def _idle(resident: Resident, now: float) -> float | None:
    if resident.ready_at is None or resident.in_flight:
        return None
    return now - resident.last_used


def _phases(worker: WorkerProcess) -> LoadPhases:
    return msgspec.structs.replace(worker.phases, first_token_seconds=worker.client.tally.first_token_seconds)
