"""Which models are resident, and which requests may use them: the only writer of that state, without I/O or a clock.

Events arrive as method calls with the time at which they happened; decisions leave through `Effects`. Between events
nothing changes: `next_tick` is when to call `tick`. The states of a model:

    absent --request--> queued --memory--> starting --ready--> ready --unload, idle, evict--> stopping --exit--> absent
                                              |                  |
                                              +-------exit-------+--> failed --request after the backoff--> queued

Models that need memory queue in the order of their first request. For the first one, idle models are evicted; busy ones
that have been ready for the minimum residency drain: their new requests wait until it has started or is rejected. The
models behind it start early only if they do not delay it.
"""

import itertools
from collections import deque

from msgspec.structs import replace

from osaurusd.errors import ModelUnloaded, OsaurusError, QueueFull, ShuttingDown
from osaurusd.pool import policy
from osaurusd.pool.memory_leases import MemoryLease, MemoryLeases
from osaurusd.pool.policy import Plan
from osaurusd.pool.state import Effects, Failure, ModelSpec, ModelState, SchedulerConfig, StopCause, Waiter
from osaurusd.wire.admin import IN_MEMORY, WorkerState


class Scheduler:
    """Decides which models are loaded. All requests for a model that is loading wait for the same load."""

    def __init__(self, effects: Effects, config: SchedulerConfig | None = None) -> None:
        self._config = config or SchedulerConfig()
        self._effects = effects
        self._models: dict[str, ModelState] = {}
        self._failures: dict[str, Failure] = {}
        self._pins: dict[str, ModelSpec] = {}
        # Pinned models that were unloaded by force stay unloaded until the next request.
        self._unloaded_pins: set[str] = set()
        # Minimum memory as reported by workers, which replaces the estimates.
        self._measured_bytes: dict[str, int] = {}
        self.leases = MemoryLeases()
        self._positions = itertools.count(1)
        self._wakeups: list[float] = []
        self._last_division: object = None
        self._shutting_down = False

    @property
    def models(self) -> list[ModelState]:
        return list(self._models.values())

    @property
    def failures(self) -> dict[str, Failure]:
        """Failures by model; a regular stop clears them."""
        return dict(self._failures)

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(self._pins)

    @property
    def config(self) -> SchedulerConfig:
        return self._config

    @property
    def used_bytes(self) -> int:
        """The part of the budget that models hold or other hosts have been lent."""
        return self.leases.lent_bytes + sum(model.held_bytes for model in self._in_memory())

    @property
    def pinned_bytes(self) -> int:
        """The minimum memory of all pinned models together."""
        return sum(map(self._needs, self._pins.values()))

    @property
    def next_tick(self) -> float | None:
        """When to call `tick` unless another event comes first."""
        return min(self._wakeups, default=None)

    # Events

    def tick(self, now: float) -> None:
        """Handle the deadlines that have passed."""
        self._reconcile(now)

    def configure(self, config: SchedulerConfig, now: float) -> None:
        """Replace the configuration."""
        self._config = config
        self._reconcile(now)

    def request(self, spec: ModelSpec, waiter: Waiter, now: float, *, ignore_backoff: bool = False) -> None:
        """Request the use of a model. A granted request is in flight until `release`."""
        if self._shutting_down:
            waiter.reject(ShuttingDown("the daemon is shutting down"))
            return
        model = self._models.get(spec.key)
        if model is None:
            failure = self._failures.get(spec.key)
            if failure is not None and now < failure.retry_at and not ignore_backoff:
                waiter.reject(failure.rejection(now))
                return
            model = self._enqueue(spec)
        if model.state is WorkerState.READY and not model.draining:
            model.grant(waiter, now)
        elif len(model.waiters) >= self._config.max_waiting:
            waiter.reject(QueueFull(f"{len(model.waiters)} requests are already waiting for `{spec.key}`; retry later"))
        else:
            model.waiters.append((next(self._positions), waiter))
        self._reconcile(now)

    def set_keep_alive(self, key: str, keep_alive: float | None, now: float, *, fixed: bool = True) -> None:
        """Change the keep-alive of a resident model; one that is `fixed` yields only to another fixed one."""
        model = self._models.get(key)
        if model is not None and (fixed or not model.keep_alive_fixed):
            model.keep_alive, model.keep_alive_fixed = keep_alive, fixed
            self._reconcile(now)

    def abandon(self, waiter: Waiter, now: float) -> None:
        """Forget a request whose caller was cancelled while it waited. A load in progress continues."""
        for model in self.models:
            remaining = [entry for entry in model.waiters if entry[1] is not waiter]
            if len(remaining) == len(model.waiters):
                continue
            model.waiters = deque(remaining)
            if model.state is WorkerState.QUEUED and not remaining and not model.pinned:
                del self._models[model.key]
        self._reconcile(now)

    def release(self, model: ModelState, now: float, *, served: bool = True) -> None:
        """End a granted request; `served` is False if it only loaded the model."""
        model.in_flight -= 1
        model.last_used = now
        model.served |= served
        self._reconcile(now)

    def ready(self, model: ModelState, now: float, needs_bytes: int = 0, *, planned: bool = False) -> None:
        """Handle a completed load; `needs_bytes`, unless 0, replaces the estimate; `planned` is as in `ModelSpec`."""
        model.planned = planned
        model.needs_bytes = needs_bytes or model.needs_bytes
        if needs_bytes and not planned:
            self._measured_bytes[model.key] = needs_bytes
        if planned and (pin := self._pins.get(model.key)):
            self._pins[model.key] = replace(pin, needs_bytes=model.needs_bytes)
        if model.state is not WorkerState.STARTING:
            return  # stopped during the load
        model.state = WorkerState.READY
        model.ready_at = model.last_used = now
        model.grant_all(now)
        self._reconcile(now)

    def reserve(self, model: ModelState, nbytes: int, now: float) -> None:
        """Record what the worker and its requests may grow to."""
        shrunk = nbytes < model.reserved_bytes
        model.reserved_bytes = nbytes
        if shrunk:
            self._reconcile(now)

    def exited(self, model: ModelState, error: OsaurusError, now: float) -> None:
        """Handle the exit of a worker. Requests in flight fail through their event streams."""
        del self._models[model.key]
        model.confirm_unload()
        if model.state is WorkerState.STOPPING:
            self._failures.pop(model.key, None)
            if model.waiters:
                # Requests that arrived while the model was draining or stopping load it again, at their position.
                successor = self._enqueue(model.spec)
                successor.waiters, successor.position = model.waiters, model.waiters[0][0]
        else:
            self._record_failure(model, error, now)
            model.reject_all(error)
        self._reconcile(now)

    def unload(self, key: str, waiter: Waiter, now: float, *, force: bool = False) -> None:
        """Stop a model's worker; the waiter is granted once it has exited, or at once if the model is not loaded.

        A busy or pinned model is not unloaded without `force`; with it, running requests fail.
        """
        model = self._models.get(key)
        if model is None:
            self._failures.pop(key, None)
            waiter.grant(ModelState(key, WorkerState.STOPPING))
            return
        if not force and (refusal := policy.unload_refusal(model)):
            waiter.reject(refusal)
            return
        if model.pinned:
            self._unloaded_pins.add(key)
        model.unload_waiters.append(waiter)
        self._stop(model, ModelUnloaded("the model was unloaded before the request completed"), StopCause.UNLOAD)
        self._reconcile(now)

    def unload_unused(self, now: float) -> None:
        """Stop the models that are neither in use nor pinned, because the system is short of memory."""
        for model in policy.unused(self.models):
            self._stop(model, ModelUnloaded("the system is short of memory"), StopCause.PRESSURE)
        self._reconcile(now)

    def pin(self, spec: ModelSpec, now: float, *, check: bool = True) -> None:
        """Exempt a model from eviction and keep-alive, and restart it when its worker fails.

        Raises:
            InsufficientMemory: `check` is set and the pinned models together exceed the budget.
        """
        pins = {**self._pins, spec.key: spec}
        needs = {key: self._needs(pinned) for key, pinned in pins.items()}
        if check and sum(needs.values()) > self._config.budget_bytes:
            raise policy.pins_exceed_budget(self._config.budget_bytes, needs)
        self._pins = pins
        self._update_pinned(spec.key, now)

    def unpin(self, key: str, now: float) -> None:
        """Remove a pin."""
        self._pins.pop(key, None)
        self._unloaded_pins.discard(key)
        self._update_pinned(key, now)

    def lend(self, lease: MemoryLease, waiter: Waiter, now: float, *, limit: int) -> None:
        """Reserve memory for another host until `end_lease`, and evict idle models for it.

        The waiter is granted once the memory is free, or rejected at once. All leases together may have `limit` bytes.
        """
        if refusal := self.leases.refusal(lease, limit, self._config.budget_bytes, self._in_memory()):
            waiter.reject(refusal)
            return
        plan = policy.make_room(self._budget, self._in_memory(), lease.nbytes)
        self.leases.add(lease, waiter)
        self._evict(plan, f"for host `{lease.owner}`")
        self._reconcile(now)

    def end_lease(self, lease: MemoryLease, now: float) -> None:
        self.leases.remove(lease)
        self._reconcile(now)

    def shut_down(self, now: float) -> None:
        """Stop every worker and reject all waiting and future requests."""
        self._shutting_down = True
        for model in self.models:
            self._stop(model, ShuttingDown("the daemon is shutting down"), StopCause.SHUTDOWN)
        self._reconcile(now)

    # Reconciliation

    def _reconcile(self, now: float) -> None:
        """Take the actions that the state requires, and note the deadlines of the next ones."""
        self._wakeups = []
        if self._shutting_down:
            return
        self._stop_idle(now)
        self._enforce_budget()
        self._restore_pinned(now)
        starting = self._run_queue(now)
        self._divide_budget(starting)
        for model in starting:
            self._effects.start(model)
        self.leases.grant(self._config.budget_bytes - sum(model.held_bytes for model in self._in_memory()))

    def _stop_idle(self, now: float) -> None:
        for model in policy.unused(self.models):
            if (until := model.idle_until) is None:
                continue
            if now < until:
                self._wakeups.append(until)
            else:
                self._stop(model, ModelUnloaded(f"the model was idle for {model.keep_alive:g} s"), StopCause.IDLE)

    def _enforce_budget(self) -> None:
        """Evict idle models after the budget shrank, or a model turned out larger than estimated."""
        plan = policy.make_room(self._budget, self._in_memory(), 0, size=lambda model: model.needs_bytes)
        self._evict(plan, "to stay within the memory budget")

    def _restore_pinned(self, now: float) -> None:
        for key, spec in self._pins.items():
            failure = self._failures.get(key)
            if failure is None or key in self._models or key in self._unloaded_pins:
                continue
            if now >= failure.retry_at:
                self._enqueue(spec)
            else:
                self._wakeups.append(failure.retry_at)

    def _run_queue(self, now: float) -> list[ModelState]:
        """Start the queued models for which there is room; make room for the first of the others."""
        budget = self._budget
        starting: list[ModelState] = []
        queued_bytes, draining = 0, set[str]()
        leaving = {model.key for model in self._with_state(WorkerState.STOPPING)}
        for model in sorted(self._with_state(WorkerState.QUEUED), key=lambda model: model.position):
            plan = policy.make_room(budget, self._in_memory(), model.needs_bytes)
            if queued_bytes:
                model.blocked_since = None  # room is made for an earlier model first
            if policy.can_never_fit(budget, model, self._in_memory()) or self._wait_expired(model, now):
                self._reject_queued(model, now)
            elif not queued_bytes:
                leaving |= {*plan.evict, *plan.drain}
                draining |= self._choose_draining(model, plan, now)
                if not plan.drain:
                    self._evict(plan, f"for `{model.key}`")
            if model.key not in self._models:
                continue
            if policy.fits(budget, model, self._in_memory(), queued_bytes, leaving):
                model.state, model.started_at, model.last_used = WorkerState.STARTING, now, now
                starting.append(model)
            else:
                queued_bytes += model.needs_bytes
        for model in self._with_state(WorkerState.READY):
            model.draining = model.key in draining
            if not model.draining:
                model.grant_all(now)
        return starting

    def _wait_expired(self, model: ModelState, now: float) -> bool:
        if model.blocked_since is None:
            return False
        until = model.blocked_since + self._config.wait_seconds
        if now < until:
            self._wakeups.append(until)
        return now >= until

    def _choose_draining(self, model: ModelState, plan: Plan, now: float) -> set[str]:
        """Return the models of `plan.drain` whose minimum residency is over; they accept no further requests."""
        ready_at = {key: self._models[key].ready_at for key in plan.drain}
        until = {key: at + self._config.min_residency_seconds for key, at in ready_at.items() if at is not None}
        expired = {key for key, end in until.items() if now >= end}
        self._wakeups += [end for key, end in until.items() if key not in expired]
        if len(expired) < len(ready_at) or (plan.possible and not ready_at):
            model.blocked_since = None
        elif model.blocked_since is None:
            model.blocked_since = now
            self._wakeups.append(now + self._config.wait_seconds)
        return expired

    def _reject_queued(self, model: ModelState, now: float) -> None:
        error = policy.insufficient_memory(self._budget, model, self._in_memory(), self.leases.lent_bytes)
        del self._models[model.key]
        model.reject_all(error)
        model.confirm_unload()
        if model.pinned:
            self._record_failure(model, error, now, min_wait=1.0)
            self._wakeups.append(self._failures[model.key].retry_at)

    def _evict(self, plan: Plan, purpose: str) -> None:
        for key in plan.evict:
            self._stop(self._models[key], ModelUnloaded(f"the model was evicted {purpose}"), StopCause.MEMORY)

    def _divide_budget(self, starting: list[ModelState]) -> None:
        """Update the models' limits if the budget or the set of models has changed."""
        budget = self._budget
        models = self._with_state(WorkerState.STARTING, WorkerState.READY)
        leaving_bytes = sum(model.held_bytes for model in self._with_state(WorkerState.STOPPING))
        division = (budget, leaving_bytes, [(model, model.needs_bytes) for model in models])
        if division == self._last_division:
            return
        self._last_division = division
        needs = {model.key: model.held_bytes for model in models}
        for key, limit in policy.divide_budget(budget - leaving_bytes, needs).items():
            model, before = self._models[key], self._models[key].limit_bytes
            model.limit_bytes = limit
            if limit != before and model not in starting:
                self._effects.update_limit(model)

    @property
    def _budget(self) -> int:
        return max(self._config.budget_bytes - self.leases.lent_bytes, 0)

    # State changes

    def _enqueue(self, spec: ModelSpec) -> ModelState:
        self._unloaded_pins.discard(spec.key)
        spec, pinned = replace(spec, needs_bytes=self._needs(spec)), spec.key in self._pins
        model = self._models[spec.key] = ModelState.queued(spec, pinned=pinned, position=next(self._positions))
        return model

    def _stop(self, model: ModelState, reason: OsaurusError, cause: StopCause) -> None:
        stopping = model.state is WorkerState.STOPPING
        if cause in (StopCause.UNLOAD, StopCause.SHUTDOWN) and (not stopping or self._shutting_down):
            model.reject_all(reason)
        if model.state is WorkerState.QUEUED:
            del self._models[model.key]
            model.confirm_unload()
        elif not stopping:
            model.state = WorkerState.STOPPING
            self._effects.stop(model, reason, cause)

    def _update_pinned(self, key: str, now: float) -> None:
        if model := self._models.get(key):
            model.pinned = key in self._pins
        self._reconcile(now)

    def _record_failure(self, model: ModelState, error: OsaurusError, now: float, min_wait: float = 0.0) -> None:
        uptime = 0.0 if model.ready_at is None else now - model.ready_at
        previous = self._failures.get(model.key)
        self._failures[model.key] = Failure.following(previous, error, now=now, uptime=uptime, min_wait=min_wait)

    def _needs(self, spec: ModelSpec) -> int:
        return spec.needs_bytes if spec.planned else self._measured_bytes.get(spec.key, spec.needs_bytes)

    def _with_state(self, *states: WorkerState) -> list[ModelState]:
        return [model for model in self._models.values() if model.state in states]

    def _in_memory(self) -> list[ModelState]:
        return self._with_state(*IN_MEMORY)
