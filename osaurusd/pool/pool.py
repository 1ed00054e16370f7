"""The pool: turns the scheduler's decisions into worker processes, and hands out leases on them."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from osaurusd.errors import InsufficientMemory, InternalError, ModelUnloaded, OsaurusError, WorkerCrashed
from osaurusd.events import Bus
from osaurusd.log import get_logger
from osaurusd.models.record import ModelRecord
from osaurusd.platform.power import Awake
from osaurusd.pool import report, shares
from osaurusd.pool.meter import Meters, Tally
from osaurusd.pool.report import Budget, Slot, WorkerReport
from osaurusd.pool.resident import Cause, Demand, Resident, Rules
from osaurusd.pool.scheduler import Scheduler
from osaurusd.pool.spare import Spare
from osaurusd.pool.terms import Terms
from osaurusd.rpc import messages, process
from osaurusd.rpc.client import WorkerClient
from osaurusd.rpc.process import WorkerProcess
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)


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


class Pool:
    """All workers. Loads on request, keeps what is loaded while it is useful, and outlives every one of them.

    Args:
        terms: how.
        bus: is told what happens.
        awake: held while requests are served.
    """

    def __init__(self, terms: Terms, *, bus: Bus | None = None, awake: Awake | None = None) -> None:
        self.meters = Meters()
        self.bus = bus or Bus()
        self._terms = terms
        self._spare = Spare(terms.launch, terms.spare_seconds)
        self._awake = awake or Awake()
        # Until a worker has said what it computes on.
        self._on_cpu = sys.platform != "darwin"
        self._working_set: int | None = None
        self._scheduler = Scheduler(self, terms.rules)
        self._slots: dict[Resident, Slot] = {}
        self._records: dict[str, ModelRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def configure(self, terms: Terms) -> None:
        """Start workers like this from now on; memory is divided anew at once."""
        self._terms = terms
        self._spare.configure(terms.launch, terms.spare_seconds)
        for resident in self._scheduler.residents:
            if record := self._records.get(resident.key):
                self._tell(self._scheduler.keep, resident.key, terms.keep_alive.of(record), asked=False)
        self._tell(self._scheduler.configure, self._rules())
        for resident in self._scheduler.residents:
            self.limit(resident)

    @contextlib.asynccontextmanager
    async def lease(self, record: ModelRecord) -> AsyncIterator[WorkerClient]:
        """A ready worker for this model, loaded first if need be; it counts as in use until the block ends.

        Raises:
            OsaurusError: why there will be none.
        """
        resident = await self._wait_for(self._demand(record))
        slot = self._slots.get(resident)
        try:
            # Between the grant and this step the worker may have gone again.
            if slot is None or slot.worker is None:
                raise WorkerCrashed("the model's worker ended before it could be used")
            with self._awake.held():
                yield slot.worker.client
        finally:
            self._tell(self._scheduler.released, resident)

    async def load(self, record: ModelRecord, keep_alive: float | None = None) -> WorkerReport | None:
        """Have the model loaded, also one that is being left alone because its worker died repeatedly.

        Args:
            record: the model.
            keep_alive: how long it stays once idle, in seconds, until it is unloaded; below 0 is for ever. None leaves
                that to the configuration.

        Returns:
            How its worker is, or None if it has gone again already.

        Raises:
            OsaurusError: why it cannot be loaded.
        """
        resident = await self._wait_for(self._demand(record), insist=True)
        if keep_alive is not None:
            self._tell(self._scheduler.keep, record.repo, shares.forever_below_zero(keep_alive))
        self._tell(self._scheduler.released, resident, served=False)
        return next((found for found in self.report() if found.key == record.repo), None)

    async def unload(self, key: str, *, force: bool = False) -> None:
        """End the worker of the model with this key; returns once its memory is back.

        Raises:
            Busy: it is in use or pinned, and `force` was not said.
        """
        wait = _Wait()
        self._tell(self._scheduler.unload, key, wait, force=force)
        await wait.future

    def pin(self, record: ModelRecord, *, check: bool = True) -> None:
        """Keep this model from being evicted or idled out, and bring it back if its worker dies.

        Raises:
            InsufficientMemory: all pinned models together are more than there is room for, and `check` is wanted.
        """
        self._tell(self._scheduler.pin, self._demand(record), check=check)
        self.bus.publish(EventKind.PINNED, record.name)

    def unpin(self, key: str) -> None:
        """Treat the model with this key like any other again."""
        if key in self._scheduler.pinned:
            self._tell(self._scheduler.unpin, key)
            self.bus.publish(EventKind.UNPINNED, self._records[key].name)

    def bring_up(self, records: Sequence[ModelRecord]) -> None:
        """Load these models one after the other, without waiting for that; what fails is logged and told as events."""
        self._spawn(self._bring_up(records))

    async def _bring_up(self, records: Sequence[ModelRecord]) -> None:
        for record in records:
            try:
                await self.load(record)
            except OsaurusError as error:
                log.warning("a pinned model could not be loaded", model=record.name, reason=error.message)

    @property
    def pinned_bytes(self) -> int:
        """What the pinned models need together."""
        pinned = [self._records[key] for key in self._scheduler.pinned]
        return sum(self._scheduler.needs(self._demand(record)) for record in pinned)

    @property
    def budget(self) -> Budget:
        """The memory for models, and what of it they hold."""
        return Budget(self._scheduler.rules.budget_bytes, self._scheduler.used_bytes)

    def report(self) -> list[WorkerReport]:
        """Every worker there is or is to be, in the order they were asked for; then those that ended by themselves."""
        now, scheduler = _now(), self._scheduler
        residents = {resident.key: resident for resident in scheduler.residents}
        there = [
            report.of_resident(resident, self._records[key].name, self._slots.get(resident), scheduler, now)
            for key, resident in residents.items()
        ]
        failed = [
            report.of_failure(key, self._records[key].name, failure, pinned=key in scheduler.pinned)
            for key, failure in scheduler.failures.items()
            if key not in residents
        ]
        return there + failed

    async def drain(self, grace: float) -> None:
        """Let running requests finish for up to `grace` seconds. New ones still come in: close the doors first."""
        self._note_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()

    async def close(self) -> None:
        """End every worker; requests still running fail."""
        self._tell(self._scheduler.shut_down)
        await self._spare.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.bus.close()

    # Effects of the scheduler

    def start(self, resident: Resident) -> None:
        record = self._records[resident.key]
        told = self._limits(resident)
        order = shares.load_order(record, self._terms.share, told)
        log.info("loading", model=record.name, path=order.path)
        self.bus.publish(EventKind.LOADING, record.name, bytes=resident.needs_bytes)
        starting = asyncio.create_task(process.start(order, self._terms.launch, self._spare.take()))
        slot = self._slots[resident] = Slot(record.name, starting, _now(), told)
        self._spawn(self._live(resident, slot))

    def stop(self, resident: Resident, reason: OsaurusError, cause: Cause) -> None:
        slot = self._slots[resident]
        slot.stopped_for, slot.cause = reason, cause
        self.bus.publish(EventKind.UNLOADING, slot.name, cause=cause, reason=reason.message)
        self.meters.unloads.add(1, slot.name, cause)
        if slot.worker is not None:
            self._spawn(slot.worker.stop(reason))
        else:
            slot.starting.cancel()

    def limit(self, resident: Resident) -> None:
        slot = self._slots.get(resident)
        if slot is not None and slot.worker is not None:
            self._send_limits(resident, slot, slot.worker)

    def _send_limits(self, resident: Resident, slot: Slot, worker: WorkerProcess) -> None:
        wanted = self._limits(resident)
        if wanted != slot.told:
            slot.told = wanted
            worker.client.limit(wanted)

    def _limits(self, resident: Resident) -> messages.Limits:
        return shares.limits(self._terms.share, resident.limit_bytes, resident.needs_bytes, wired=not self._on_cpu)

    async def _live(self, resident: Resident, slot: Slot) -> None:
        """One worker's whole life, from spawn to exit."""
        error: OsaurusError = InternalError("the daemon lost track of the model's worker")
        try:
            await asyncio.wait({slot.starting})
            error = _failure(slot.starting) or await self._until_gone(resident, slot, slot.starting.result())
        finally:
            # Whatever happened above, nobody may be left waiting for this resident.
            self._gone(resident, slot, error)

    async def _until_gone(self, resident: Resident, slot: Slot, worker: WorkerProcess) -> OsaurusError:
        slot.worker = worker
        slot.load_seconds = _now() - slot.started_at
        worker.client.tally = Tally(slot.name, self.meters)
        worker.on_exit = partial(self._gone, resident, slot)
        worker.client.on_reserved = lambda nbytes: self._tell(self._scheduler.reserved, resident, nbytes)
        self._note_loaded(slot, worker)
        if slot.stopped_for is not None:
            # Told to stop in the moment between the end of the load and this one.
            self._spawn(worker.stop(slot.stopped_for))
        self._tell(self._scheduler.ready, resident, needs_bytes=worker.loaded.least_bytes or None)
        self._send_limits(resident, slot, worker)
        self._spare.prepare()
        return await asyncio.shield(worker.exited)

    def _note_loaded(self, slot: Slot, worker: WorkerProcess) -> None:
        loaded = worker.loaded
        seconds = slot.load_seconds or 0.0
        log.info("loaded", model=slot.name, pid=worker.pid, **_facts(seconds, worker))
        self.meters.loads.add(1, slot.name, "loaded")
        self.bus.publish(
            EventKind.LOADED, slot.name, pid=worker.pid, seconds=round(seconds, 3), bytes=loaded.memory_bytes
        )
        self._on_cpu = loaded.device == "cpu"
        if loaded.working_set_bytes and loaded.working_set_bytes != self._working_set:
            self._working_set = loaded.working_set_bytes
            self._tell(self._scheduler.configure, self._rules())

    def _rules(self) -> Rules:
        """With no more than the GPU recommends to use."""
        rules = self._terms.rules
        if self._working_set is None:
            return rules
        return replace(rules, budget_bytes=min(rules.budget_bytes, self._working_set))

    def _gone(self, resident: Resident, slot: Slot, error: OsaurusError) -> None:
        """The worker is no more; only the first to say so counts."""
        if self._slots.pop(resident, None) is None:
            return
        pid = slot.worker.pid if slot.worker else None
        if slot.stopped_for is not None:
            log.info("unloaded", model=slot.name, cause=slot.cause, reason=slot.stopped_for.message)
            self.bus.publish(EventKind.UNLOADED, slot.name, pid=pid, cause=slot.cause, reason=slot.stopped_for.message)
        else:
            log.error("worker lost", model=slot.name, code=error.code, reason=error.message)
            kind = EventKind.CRASHED if slot.worker else EventKind.LOAD_FAILED
            self.bus.publish(kind, slot.name, pid=pid, reason=error.message)
            self._count_failure(slot, error)
        self._tell(self._scheduler.exited, resident, error)

    def _count_failure(self, slot: Slot, error: OsaurusError) -> None:
        if slot.worker is None:
            self.meters.loads.add(1, slot.name, "failed")
        if isinstance(error, WorkerCrashed):
            self.meters.crashes.add(1, slot.name)

    def _demand(self, record: ModelRecord) -> Demand:
        self._records[record.repo] = record
        needed = shares.estimate(record, self._terms.share, self._scheduler.rules.budget_bytes, on_cpu=self._on_cpu)
        return Demand(record.repo, needed, self._terms.keep_alive.of(record))

    async def _wait_for(self, demand: Demand, *, insist: bool = False) -> Resident:
        wait = _Wait()
        self._tell(self._scheduler.request, demand, wait, insist=insist)
        self._note_wait(demand, wait)
        try:
            return await wait.future
        except InsufficientMemory as error:
            self.bus.publish(EventKind.REFUSED, self._records[demand.key].name, reason=error.message)
            raise
        except asyncio.CancelledError:
            # Granted in the very step in which the caller went away, or not granted at all.
            if wait.future.done() and not wait.future.cancelled() and wait.future.exception() is None:
                self._tell(self._scheduler.released, wait.future.result(), served=False)
            else:
                self._tell(self._scheduler.abandoned, wait)
            raise

    def _note_wait(self, demand: Demand, wait: _Wait) -> None:
        """Tell of a model that has to wait for room."""
        if wait.future.done():
            return
        wanted = (resident for resident in self._scheduler.residents if resident.key == demand.key)
        if any(resident.state is WorkerState.QUEUED and len(resident.waiting) == 1 for resident in wanted):
            self.bus.publish(EventKind.QUEUED, self._records[demand.key].name, bytes=demand.needs_bytes)

    def _tell(self, event: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Let the scheduler know of an event that happens now, and wake it when it wants to be."""
        event(*arguments, now=_now(), **options)
        self._note_idle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due := self._scheduler.due) is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._tell, self._scheduler.tick)

    def _note_idle(self) -> None:
        if any(resident.in_flight or resident.waiting for resident in self._scheduler.residents):
            self._idle.clear()
        else:
            self._idle.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _failure(starting: asyncio.Task[WorkerProcess]) -> OsaurusError | None:
    """Why there is no worker, or None if there is one."""
    if starting.cancelled():
        return ModelUnloaded("the model was unloaded while it was loading")
    error = starting.exception()
    if error is None or isinstance(error, OsaurusError):
        return error
    log.error("loading failed unexpectedly", exc_info=error)
    return InternalError(f"loading failed: {type(error).__name__}")


def _facts(seconds: float, worker: WorkerProcess) -> dict[str, object]:
    loaded, phases = worker.loaded, worker.phases
    return {
        "seconds": round(seconds, 2),
        "spawn_seconds": round(phases.spawn_seconds, 3),
        "import_seconds": round(phases.import_seconds, 3),
        "weights_seconds": round(phases.weights_seconds, 3),
        "spare": phases.spare,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "bytes": loaded.memory_bytes,
        "batched": loaded.batched,
    }
