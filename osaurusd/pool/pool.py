"""The pool: turns the scheduler's decisions into worker processes, and hands out leases on them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Literal

from osaurusd import ipc
from osaurusd.catalog.record import ModelRecord
from osaurusd.errors import InternalError, ModelUnloaded, OsaurusError, WorkerCrashed
from osaurusd.log import get_logger
from osaurusd.pool import process
from osaurusd.pool.client import WorkerClient
from osaurusd.pool.process import Launch, WorkerProcess
from osaurusd.pool.scheduler import Resident, Scheduler
from osaurusd.wire.admin import WorkerState

log = get_logger(__name__)


@dataclass(frozen=True)
class WorkerReport:
    """A worker as it is now. Bytes are what MLX holds; times are seconds."""

    key: str
    name: str
    state: WorkerState
    pid: int | None
    device: str | None
    mlx_bytes: int
    in_flight: int
    waiting: int
    load_seconds: float | None
    idle_seconds: float | None


@dataclass(eq=False)
class _Slot:
    """What the pool keeps for a resident model."""

    name: str
    starting: asyncio.Task[WorkerProcess]
    started_at: float
    worker: WorkerProcess | None = None
    load_seconds: float | None = None
    last_used: float | None = None
    stopped_for: OsaurusError | None = None


class _Wait:
    """A ticket that is a future."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Resident] = asyncio.get_running_loop().create_future()

    def grant(self, resident: Resident) -> bool:
        if self.future.done():
            return False
        self.future.set_result(resident)
        return True

    def refuse(self, error: OsaurusError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True)
class Share:
    """What each worker is told when it loads; see `ipc.Load`."""

    dequantize: Literal["auto", "always", "never"] = "auto"
    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


class Pool:
    """All workers. Loads on request, keeps what is loaded, and outlives every one of them."""

    def __init__(self, launch: Launch, share: Share) -> None:
        self._launch = launch
        self._share = share
        self._scheduler = Scheduler(self, share.max_waiting)
        self._slots: dict[Resident, _Slot] = {}
        self._records: dict[str, ModelRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()

    def configure(self, launch: Launch, share: Share) -> None:
        """Start workers like this from now on; those that run stay as they are."""
        self._launch = launch
        self._share = share
        self._scheduler.max_waiting = share.max_waiting

    @contextlib.asynccontextmanager
    async def lease(self, record: ModelRecord) -> AsyncIterator[WorkerClient]:
        """A ready worker for this model, loaded first if need be; it counts as in use until the block ends.

        Raises:
            OsaurusError: why there will be none.
        """
        wait = _Wait()
        self._records[record.repo] = record
        self._scheduler.request(record.repo, wait)
        resident = await self._granted(wait)
        slot = self._slots.get(resident)
        try:
            # Between the grant and this step the worker may have gone again.
            if slot is None or slot.worker is None:
                raise WorkerCrashed("the model's worker ended before it could be used")
            yield slot.worker.client
        finally:
            if slot is not None:
                slot.last_used = time.monotonic()
            self._scheduler.released(resident)
            self._note_idle()

    async def unload(self, key: str, *, force: bool = False) -> None:
        """End the worker of the model with this key; returns once its memory is back.

        Raises:
            Busy: it is in use, and `force` was not said.
        """
        wait = _Wait()
        self._scheduler.unload(key, wait, force=force)
        await wait.future

    def report(self) -> list[WorkerReport]:
        """Every worker there is, in the order they were asked for."""
        return [self._report(resident) for resident in self._scheduler.residents]

    async def drain(self, grace: float) -> None:
        """Let running requests finish for up to `grace` seconds. New ones still come in: close the doors first."""
        self._note_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()

    async def close(self) -> None:
        """End every worker; requests still running fail."""
        self._scheduler.shut_down()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # Effects of the scheduler

    def start(self, resident: Resident) -> None:
        record = self._records[resident.key]
        order = ipc.Load(
            path=str(record.path),
            context_length=record.context_length,
            dequantize=self._share.dequantize,
            memory_limit_bytes=self._share.memory_limit_bytes,
            cache_limit_bytes=self._share.cache_limit_bytes,
            prefix_cache_bytes=self._share.prefix_cache_bytes,
            max_waiting=self._share.max_waiting,
            stall_seconds=self._share.stall_seconds,
        )
        log.info("loading", model=record.name, path=order.path)
        starting = asyncio.create_task(process.start(order, self._launch))
        slot = self._slots[resident] = _Slot(record.name, starting, time.monotonic())
        self._spawn(self._live(resident, slot))

    def stop(self, resident: Resident, reason: OsaurusError) -> None:
        slot = self._slots[resident]
        slot.stopped_for = reason
        if slot.worker is not None:
            self._spawn(slot.worker.stop(reason))
        else:
            slot.starting.cancel()

    async def _live(self, resident: Resident, slot: _Slot) -> None:
        """One worker's whole life, from spawn to exit."""
        error: OsaurusError = InternalError("the daemon lost track of the model's worker")
        try:
            await asyncio.wait({slot.starting})
            error = _failure(slot.starting) or await self._until_gone(resident, slot, slot.starting.result())
        finally:
            # Whatever happened above, nobody may be left waiting for this resident.
            self._gone(resident, slot, error)

    async def _until_gone(self, resident: Resident, slot: _Slot, worker: WorkerProcess) -> OsaurusError:
        slot.worker = worker
        slot.last_used = time.monotonic()
        slot.load_seconds = slot.last_used - slot.started_at
        worker.on_exit = partial(self._gone, resident, slot)
        log.info("loaded", model=slot.name, pid=worker.pid, **_facts(slot.load_seconds, worker.loaded))
        if slot.stopped_for is not None:
            # Told to stop in the moment between the end of the load and this one.
            self._spawn(worker.stop(slot.stopped_for))
        self._scheduler.ready(resident)
        return await asyncio.shield(worker.exited)

    def _gone(self, resident: Resident, slot: _Slot, error: OsaurusError) -> None:
        """The worker is no more; only the first to say so counts."""
        if self._slots.pop(resident, None) is None:
            return
        if slot.stopped_for is not None:
            log.info("unloaded", model=slot.name)
        else:
            log.error("worker lost", model=slot.name, code=error.code, reason=error.message)
        self._scheduler.exited(resident, error)
        self._note_idle()

    async def _granted(self, wait: _Wait) -> Resident:
        try:
            return await wait.future
        except asyncio.CancelledError:
            # Granted in the very step in which the caller went away, or not granted at all.
            if wait.future.done() and not wait.future.cancelled() and wait.future.exception() is None:
                self._scheduler.released(wait.future.result())
            else:
                self._scheduler.abandoned(wait)
            self._note_idle()
            raise

    def _note_idle(self) -> None:
        if any(resident.in_flight or resident.waiting for resident in self._scheduler.residents):
            self._idle.clear()
        else:
            self._idle.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _report(self, resident: Resident) -> WorkerReport:
        slot = self._slots[resident]
        worker = slot.worker
        idle = time.monotonic() - slot.last_used if slot.last_used is not None and not resident.in_flight else None
        stats = worker.client.stats if worker else ipc.Stats(active_bytes=0, cache_bytes=0)
        return WorkerReport(
            key=resident.key,
            name=slot.name,
            state=resident.state,
            pid=worker.pid if worker else None,
            device=worker.loaded.device if worker else None,
            mlx_bytes=stats.active_bytes + stats.cache_bytes,
            in_flight=resident.in_flight,
            waiting=len(resident.waiting),
            load_seconds=slot.load_seconds,
            idle_seconds=idle,
        )


def _failure(starting: asyncio.Task[WorkerProcess]) -> OsaurusError | None:
    """Why there is no worker, or None if there is one."""
    if starting.cancelled():
        return ModelUnloaded("the model was unloaded while it was loading")
    error = starting.exception()
    if error is None or isinstance(error, OsaurusError):
        return error
    log.error("loading failed unexpectedly", exc_info=error)
    return InternalError(f"loading failed: {type(error).__name__}")


def _facts(seconds: float, loaded: ipc.Loaded) -> dict[str, object]:
    return {
        "seconds": round(seconds, 2),
        "device": loaded.device,
        "dtype": loaded.dtype,
        "bytes": loaded.memory_bytes,
        "batched": loaded.batched,
    }
