"""The supervisor of one model's worker: from the start of the load to the exit of the process."""

import asyncio
from typing import Protocol

import msgspec
from msgspec.structs import replace

from osaurusd.errors import HostLost, InternalError, ModelUnloaded, OsaurusError, WorkerCrashed
from osaurusd.events import EventBus
from osaurusd.log import get_logger
from osaurusd.pool.metrics import PoolMetrics, RequestMetrics
from osaurusd.pool.placement import Launcher
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.pool.state import Failure, ModelState, StopCause
from osaurusd.rpc import messages
from osaurusd.rpc.watchdog import Clock
from osaurusd.rpc.worker import Worker
from osaurusd.wire.admin import IN_MEMORY
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)


class SupervisorListener(Protocol):
    """Receives the events of a supervised worker."""

    def model_loaded(self, model: ModelState, worker: Worker) -> None: ...

    def memory_reserved(self, model: ModelState, nbytes: int) -> None: ...

    def worker_exited(self, model: ModelState, error: OsaurusError) -> None:
        """Called exactly once, as the last call."""


class WorkerSupervisor:
    """Starts, observes and stops the worker of one model; reports it to logs, events, metrics and the listener.

    Attributes:
        worker: the worker, once its model is loaded.
        load_seconds: how long the load took, once it is loaded.
        task: runs until the worker has exited.
    """

    def __init__(
        self,
        model: ModelState,
        name: str,
        request: messages.Load,
        limits: messages.Limits,
        *,
        launcher: Launcher,
        listener: SupervisorListener,
        events: EventBus,
        metrics: PoolMetrics,
        clock: Clock,
    ) -> None:
        self.worker: Worker | None = None
        self.load_seconds: float | None = None
        self._model = model
        self._name = name
        self._limits = limits
        self._launcher = launcher
        self._listener = listener
        self._events = events
        self._pool_metrics = metrics
        self._generates = request.task == "generate"
        self._metrics = metrics.for_worker(name, generates=self._generates)
        self._clock = clock
        self._started_at = clock.time()
        self._stop_reason: OsaurusError | None = None
        self._stop_cause: StopCause | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._exited = False
        log.info("loading", model=name, path=request.path)
        events.publish(EventKind.LOADING, name, bytes=model.needs_bytes)
        self._loading = asyncio.create_task(self._load(request))
        self.task = asyncio.create_task(self._run())

    def stop(self, reason: OsaurusError, cause: StopCause) -> None:
        """Stop the worker, or cancel its load."""
        self._stop_reason, self._stop_cause = reason, cause
        self._events.publish(EventKind.UNLOADING, self._name, cause=cause, reason=reason.message)
        self._pool_metrics.unloads.labels(self._name, cause).inc()
        if self.worker is None:
            self._loading.cancel()
        else:
            self._stopping = asyncio.create_task(self.worker.stop(reason))

    def set_limits(self, limits: messages.Limits) -> None:
        """Send the worker its limits if they have changed."""
        if self.worker is not None and limits != self._limits:
            self._limits = limits
            self.worker.client.set_limits(limits)

    def drop_caches(self) -> None:
        """Make the worker return the memory of its caches to the system."""
        if self.worker is not None and self._stop_reason is None:
            self.worker.client.drop_caches()
            self._pool_metrics.cache_drops.labels(self._name).inc()
            self._events.publish(EventKind.CACHES_DROPPED, self._name, pid=self.worker.pid, cause="pressure")

    # The worker's listener

    def request_started(self) -> RequestMetrics:
        return self._metrics.start_request()

    def memory_reserved(self, nbytes: int) -> None:
        self._listener.memory_reserved(self._model, nbytes)

    def worker_exited(self, error: OsaurusError) -> None:
        if self._exited:
            return
        self._exited = True
        pid = self.worker.pid if self.worker else None
        if self._stop_reason is not None:
            cause, reason = self._stop_cause, self._stop_reason.message
            log.info("unloaded", model=self._name, cause=cause, reason=reason)
            self._events.publish(EventKind.UNLOADED, self._name, pid=pid, cause=cause, reason=reason)
        else:
            requests = self.worker.client.request_ids if self.worker else []
            log.error(
                "worker lost", model=self._name, pid=pid, requests=requests, code=error.code, reason=error.message
            )
            kind = EventKind.CRASHED if self.worker else EventKind.LOAD_FAILED
            self._events.publish(kind, self._name, pid=pid, reason=error.message)
            if self.worker is None:
                self._pool_metrics.loads.labels(self._name, "failed").inc()
            if isinstance(error, WorkerCrashed | HostLost):
                self._pool_metrics.crashes.labels(self._name).inc()
        self._listener.worker_exited(self._model, error)

    # Life cycle

    async def _load(self, request: messages.Load) -> Worker:
        worker = self.worker = await self._launcher.start(self._model.key, request, self)
        # No await from here on: the worker must not exit before the scheduler knows that it is ready.
        self.load_seconds = self._clock.time() - self._started_at
        self._report_loaded(worker, self.load_seconds)
        self._listener.model_loaded(self._model, worker)
        return worker

    async def _run(self) -> None:
        error: OsaurusError = InternalError("the daemon lost track of the model's worker")
        try:
            await asyncio.wait({self._loading})
            load_error = self._load_error()
            if load_error is None:
                error = await asyncio.shield(self._loading.result().exited)
            else:
                error = load_error
        finally:
            # In all cases, no request may be left waiting for this worker.
            self.worker_exited(error)
        if self._stopping is not None:
            await self._stopping

    def _load_error(self) -> OsaurusError | None:
        if self._loading.cancelled():
            return ModelUnloaded("the model was unloaded while it was loading")
        error = self._loading.exception()
        if error is None or isinstance(error, OsaurusError):
            return error
        log.error("loading failed unexpectedly", exc_info=error)
        return InternalError(f"loading failed: {type(error).__name__}")

    def _report_loaded(self, worker: Worker, seconds: float) -> None:
        loaded, phases = worker.loaded, worker.phases
        log.info(
            "loaded",
            model=self._name,
            pid=worker.pid,
            seconds=round(seconds, 2),
            spawn_seconds=round(phases.spawn_seconds, 3),
            import_seconds=round(phases.import_seconds, 3),
            weights_seconds=round(phases.weights_seconds, 3),
            standby=phases.standby,
            device=loaded.device,
            dtype=loaded.dtype,
            bytes=loaded.memory_bytes,
            batched=loaded.batched,
        )
        self._pool_metrics.loads.labels(self._name, "loaded").inc()
        needs_bytes = loaded.serving_bytes or self._model.needs_bytes
        self._events.publish(EventKind.LOADED, self._name, pid=worker.pid, seconds=round(seconds, 3), bytes=needs_bytes)

    def complete(self, snapshot: WorkerSnapshot) -> WorkerSnapshot:
        """Add the worker's figures to a snapshot of its model."""
        worker = self.worker
        if ranks := self._launcher.ranks(self._model.key):
            snapshot = replace(snapshot, ranks=tuple(ranks))
        if worker is None:
            return snapshot
        client, first_token = worker.client, self._metrics.first_token_seconds
        weights, kv_cache = worker.loaded.memory_bytes, None
        if self._generates:
            kv_cache = max(snapshot.reserved_bytes - weights, 0)
        return replace(
            snapshot,
            pid=worker.pid,
            device=worker.loaded.device,
            mlx_bytes=client.stats.active_bytes + client.stats.cache_bytes,
            running=client.running,
            queued=client.queued,
            kv_cache_bytes=kv_cache,
            kv_cache_limit_bytes=max(snapshot.limit_bytes - weights, 0),
            tokens_per_second=self._metrics.rate(),
            load_seconds=self.load_seconds,
            phases=msgspec.structs.replace(worker.phases, first_token_seconds=first_token),
        )


def snapshot_model(
    model: ModelState, name: str, supervisor: WorkerSupervisor | None, failure: Failure | None, now: float
) -> WorkerSnapshot:
    """Build the snapshot of a model that is in memory or queued."""
    idle_until = None if model.pinned else model.idle_until
    snapshot = WorkerSnapshot(
        key=model.key,
        name=name,
        state=model.state,
        needs_bytes=model.needs_bytes,
        limit_bytes=model.limit_bytes,
        reserved_bytes=model.reserved_bytes,
        held_bytes=model.held_bytes if model.state in IN_MEMORY else 0,
        in_flight=model.in_flight,
        waiting=len(model.waiters),
        pinned=model.pinned,
        idle_seconds=None if model.ready_at is None or model.in_flight else now - model.last_used,
        idle_left_seconds=None if idle_until is None else max(idle_until - now, 0.0),
        last_exit=failure.error.message if failure else None,
    )
    return supervisor.complete(snapshot) if supervisor else snapshot
