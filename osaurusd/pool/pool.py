"""The pool of loaded models: carries out the scheduler's decisions and leases workers to requests."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from osaurusd.errors import InsufficientMemory, OsaurusError, WorkerCrashed
from osaurusd.events import EventBus
from osaurusd.log import get_logger
from osaurusd.models.record import ModelRecord
from osaurusd.platform.power import PowerAssertion
from osaurusd.pool import memory
from osaurusd.pool.config import PoolConfig, negative_to_none
from osaurusd.pool.lease import FutureWaiter, Lease
from osaurusd.pool.memory_leases import MemoryLease
from osaurusd.pool.metrics import PoolMetrics
from osaurusd.pool.placement import Launcher, LocalLauncher
from osaurusd.pool.scheduler import Scheduler
from osaurusd.pool.snapshot import MemoryBudget, WorkerSnapshot
from osaurusd.pool.state import ModelSpec, ModelState, SchedulerConfig, StopCause
from osaurusd.pool.supervisor import WorkerSupervisor, snapshot_model
from osaurusd.rpc import messages
from osaurusd.rpc.client import WorkerClient
from osaurusd.rpc.process import Launch
from osaurusd.rpc.watchdog import Clock, Timer
from osaurusd.rpc.worker import Worker
from osaurusd.wire.admin import IN_MEMORY, WorkerState
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)


class Pool:
    """All loaded models. Must be created on the event loop that uses it.

    Args:
        config: the settings.
        events: receives the events of models.
        metrics: counts requests, loads and crashes.
        power: held while requests run.
        launcher: starts workers; by default as processes on this machine.
        clock: the time for scheduling; the running event loop by default.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        events: EventBus | None = None,
        metrics: PoolMetrics | None = None,
        power: PowerAssertion | None = None,
        launcher: Launcher | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.events = events or EventBus()
        self._config = config
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._metrics = metrics or PoolMetrics(CollectorRegistry(), self._clock.time)
        self._power = power or PowerAssertion()
        self._launcher = launcher or LocalLauncher(config.launch, config.standby_seconds, self._clock)
        # An assumption until the first worker reports its device.
        self._on_cpu = sys.platform != "darwin"
        self._working_set_bytes: int | None = None
        self._scheduler = Scheduler(self, config.scheduler)
        self._supervisors: dict[ModelState, WorkerSupervisor] = {}
        self._records: dict[str, ModelRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._timer: Timer | None = None

    def configure(self, config: PoolConfig) -> None:
        """Replace the settings. Memory limits change immediately; running workers keep their command and timeouts."""
        self._config = config
        self._launcher.configure(config.launch, config.standby_seconds)
        for model in self._scheduler.models:
            if record := self._records.get(model.key):
                keep_alive = config.keep_alive.for_model(record)
                self._dispatch(self._scheduler.set_keep_alive, model.key, keep_alive, fixed=False)
        self._dispatch(self._scheduler.configure, self._scheduler_config())
        for model in self._scheduler.models:
            self.update_limit(model)

    # Requests

    @contextlib.asynccontextmanager
    async def lease(self, record: ModelRecord) -> AsyncIterator[Lease]:
        """Load the model unless it is loaded, and keep it loaded until the block ends.

        Raises:
            OsaurusError: the model cannot be loaded, or too many requests wait for it.
        """
        requested_at = self._clock.time()
        model = await self._acquire(self._spec(record))
        try:
            supervisor = self._supervisors.get(model)
            # The worker may have exited since the grant.
            if supervisor is None or supervisor.worker is None:
                raise WorkerCrashed("the model's worker exited before the request reached it")
            with self._power.held():
                yield self._lease(supervisor.worker.client, model, requested_at)
        finally:
            self._dispatch(self._scheduler.release, model)

    async def load(self, record: ModelRecord, keep_alive: float | None = None) -> WorkerSnapshot | None:
        """Load a model now, even during its backoff after failures.

        Args:
            record: the model.
            keep_alive: seconds until the model is unloaded once idle; negative means never, None means as configured.

        Returns:
            The worker, or None if it has already exited again.

        Raises:
            OsaurusError: the model cannot be loaded.
        """
        model = await self._acquire(self._spec(record), ignore_backoff=True)
        if keep_alive is not None:
            self._dispatch(self._scheduler.set_keep_alive, record.repo, negative_to_none(keep_alive))
        self._dispatch(self._scheduler.release, model, served=False)
        return next((worker for worker in self.snapshot() if worker.key == record.repo), None)

    def set_keep_alive(self, record: ModelRecord, seconds: float) -> None:
        """Set after which idle time a loaded model is unloaded; negative means never. Pins are not affected."""
        self._dispatch(self._scheduler.set_keep_alive, record.repo, negative_to_none(seconds))

    def load_in_background(self, records: Sequence[ModelRecord]) -> None:
        """Load models one after the other without waiting; failures are logged and published."""
        task = asyncio.create_task(self._load_all(records))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def unload(self, key: str, *, force: bool = False) -> None:
        """Stop a model's worker and return once it has exited.

        Raises:
            Busy: the model is in use or pinned, and `force` is not set.
        """
        waiter = FutureWaiter()
        self._dispatch(self._scheduler.unload, key, waiter, force=force)
        await waiter.wait()

    def pin(self, record: ModelRecord, *, check: bool = True) -> None:
        """Exempt a model from eviction and keep-alive, and restart it when its worker fails.

        Raises:
            InsufficientMemory: `check` is set and all pinned models together exceed the budget.
        """
        self._dispatch(self._scheduler.pin, self._spec(record), check=check)
        self.events.publish(EventKind.PINNED, record.name)

    def unpin(self, key: str) -> None:
        """Remove a pin."""
        if key in self._scheduler.pinned:
            self._dispatch(self._scheduler.unpin, key)
            self.events.publish(EventKind.UNPINNED, self._records[key].name)

    # Memory for other hosts

    @contextlib.asynccontextmanager
    async def lend(self, lease: MemoryLease, limit: int) -> AsyncIterator[None]:
        """Reserve memory for a rank of another host until the block ends; idle models are evicted for it.

        Args:
            lease: what to reserve.
            limit: bytes of all leases together.

        Raises:
            InsufficientMemory: not that much memory can be lent.
        """
        waiter = FutureWaiter()
        try:
            self._dispatch(self._scheduler.lend, lease, waiter, limit=limit)
            await waiter.wait()
            yield
        finally:
            self._dispatch(self._scheduler.end_lease, lease)

    def lendable_bytes(self, limit: int) -> int:
        """Return the size of the largest lease that could be granted now, if all together may have `limit` bytes."""
        scheduler = self._scheduler
        in_memory = [model for model in scheduler.models if model.state in IN_MEMORY]
        return scheduler.leases.lendable_bytes(limit, scheduler.config.budget_bytes, in_memory)

    # Memory pressure

    def drop_caches(self) -> None:
        """Return memory to the system that nothing needs: the caches of all models, and the standby worker."""
        self._launcher.drop_standby()
        for supervisor in self._supervisors.values():
            supervisor.drop_caches()

    def unload_unused(self) -> None:
        """Unload the models that are neither in use nor pinned, because the system is short of memory."""
        self._dispatch(self._scheduler.unload_unused)

    # State

    def needs_bytes(self, record: ModelRecord) -> int:
        """Return the minimum memory of a model: measured while it is loaded, otherwise an estimate."""
        loaded = (model.needs_bytes for model in self._scheduler.models if model.key == record.repo)
        return next(loaded, None) or self._launcher.needs_bytes(record) or self._estimate_bytes(record)

    @property
    def pinned_bytes(self) -> int:
        """The minimum memory of all pinned models together."""
        return self._scheduler.pinned_bytes

    @property
    def launch(self) -> Launch:
        """How workers are started."""
        return self._config.launch

    @property
    def budget(self) -> MemoryBudget:
        return MemoryBudget(self._scheduler.config.budget_bytes, self._scheduler.used_bytes)

    def snapshot(self) -> list[WorkerSnapshot]:
        """Describe the models in memory or queued, in the order of their requests, then those that failed."""
        now, failures = self._clock.time(), self._scheduler.failures
        models = {model.key: model for model in self._scheduler.models}
        current = [
            snapshot_model(model, self._records[key].name, self._supervisors.get(model), failures.get(key), now)
            for key, model in models.items()
        ]
        failed = [
            WorkerSnapshot(
                key=key,
                name=self._records[key].name,
                state=WorkerState.FAILED,
                pinned=key in self._scheduler.pinned,
                last_exit=failure.error.message,
            )
            for key, failure in failures.items()
            if key not in models
        ]
        return current + failed

    # Shutdown

    async def drain(self, grace: float) -> None:
        """Wait until no request runs or waits, for at most `grace` seconds. Stop accepting requests first."""
        self._update_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()

    async def close(self) -> None:
        """Stop every worker; running requests fail."""
        self._dispatch(self._scheduler.shut_down)
        await self._launcher.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.events.close()

    # Effects of the scheduler

    def start(self, model: ModelState) -> None:
        record = self._records[model.key]
        limits = self._limits(model)
        supervisor = self._supervisors[model] = WorkerSupervisor(
            model,
            record.name,
            memory.build_load(record, self._config.limits, limits),
            limits,
            launcher=self._launcher,
            listener=self,
            events=self.events,
            metrics=self._metrics,
            clock=self._clock,
        )
        self._tasks.add(supervisor.task)
        supervisor.task.add_done_callback(self._tasks.discard)

    def stop(self, model: ModelState, reason: OsaurusError, cause: StopCause) -> None:
        self._supervisors[model].stop(reason, cause)

    def update_limit(self, model: ModelState) -> None:
        if supervisor := self._supervisors.get(model):
            supervisor.set_limits(self._limits(model))

    # Listener of the supervisors

    def model_loaded(self, model: ModelState, worker: Worker) -> None:
        loaded = worker.loaded
        self._on_cpu = loaded.device == "cpu"
        if loaded.working_set_bytes and loaded.working_set_bytes != self._working_set_bytes:
            self._working_set_bytes = loaded.working_set_bytes
            self._dispatch(self._scheduler.configure, self._scheduler_config())
        # Of a distributed model, the worker reports only its own part, without what the plan reserves for it.
        planned = bool(self._launcher.ranks(model.key))
        needs = self._launcher.needs_bytes(self._records[model.key]) if planned else loaded.serving_bytes
        self._dispatch(self._scheduler.ready, model, needs_bytes=needs or 0, planned=planned)
        self.update_limit(model)
        self._launcher.prepare_next()

    def memory_reserved(self, model: ModelState, nbytes: int) -> None:
        self._dispatch(self._scheduler.reserve, model, nbytes)

    def worker_exited(self, model: ModelState, error: OsaurusError) -> None:
        del self._supervisors[model]
        self._dispatch(self._scheduler.exited, model, error)

    # Helpers

    async def _load_all(self, records: Sequence[ModelRecord]) -> None:
        for record in records:
            try:
                await self.load(record)
            except OsaurusError as error:
                log.warning("cannot load a pinned model", model=record.name, reason=error.message)

    async def _acquire(self, spec: ModelSpec, *, ignore_backoff: bool = False) -> ModelState:
        waiter = FutureWaiter()
        self._dispatch(self._scheduler.request, spec, waiter, ignore_backoff=ignore_backoff)
        self._publish_queued(spec, waiter)
        try:
            return await waiter.wait()
        except InsufficientMemory as error:
            self.events.publish(EventKind.REFUSED, self._records[spec.key].name, reason=error.message)
            raise
        except asyncio.CancelledError:
            # The grant may have happened in the same loop iteration as the cancellation.
            if model := waiter.granted:
                self._dispatch(self._scheduler.release, model, served=False)
            else:
                self._dispatch(self._scheduler.abandon, waiter)
            raise

    def _publish_queued(self, spec: ModelSpec, waiter: FutureWaiter) -> None:
        """Publish that a model waits for memory, at its first request."""
        if waiter.done:
            return
        queued = (model for model in self._scheduler.models if model.state is WorkerState.QUEUED)
        if any(model.key == spec.key and len(model.waiters) == 1 for model in queued):
            self.events.publish(EventKind.QUEUED, self._records[spec.key].name, bytes=spec.needs_bytes)

    def _lease(self, client: WorkerClient, model: ModelState, requested_at: float) -> Lease:
        now = self._clock.time()
        load_start = max(model.started_at or now, requested_at)
        load_seconds = max((model.ready_at or now) - load_start, 0.0)
        return Lease(client, max(now - requested_at - load_seconds, 0.0), load_seconds)

    def _spec(self, record: ModelRecord) -> ModelSpec:
        self._records[record.repo] = record
        keep_alive = self._config.keep_alive.for_model(record)
        planned = self._launcher.needs_bytes(record)
        if planned is not None:
            # What exceeds the budget is planned for other hosts when the model is loaded.
            needs = min(planned, self._scheduler.config.budget_bytes)
            return ModelSpec(record.repo, needs, keep_alive, planned=True)
        return ModelSpec(record.repo, self._estimate_bytes(record), keep_alive)

    def _estimate_bytes(self, record: ModelRecord) -> int:
        budget = self._scheduler.config.budget_bytes
        return memory.estimate_bytes(record, self._config.limits, budget, on_cpu=self._on_cpu)

    def _limits(self, model: ModelState) -> messages.Limits:
        return memory.build_limits(self._config.limits, model.limit_bytes, model.needs_bytes)

    def _scheduler_config(self) -> SchedulerConfig:
        """The configured limits, with a budget within the GPU's recommended working set."""
        config = self._config.scheduler
        if self._working_set_bytes is None:
            return config
        return replace(config, budget_bytes=min(config.budget_bytes, self._working_set_bytes))

    def _dispatch(self, event: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Report an event that happens now to the scheduler, and schedule its next tick."""
        event(*args, now=self._clock.time(), **kwargs)
        self._update_idle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (when := self._scheduler.next_tick) is not None:
            self._timer = self._clock.call_at(when, self._dispatch, self._scheduler.tick)

    def _update_idle(self) -> None:
        if any(model.in_flight or model.waiters for model in self._scheduler.models):
            self._idle.clear()
        else:
            self._idle.set()
