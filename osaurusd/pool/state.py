"""The scheduler's data: models that are in memory or waiting for it, their waiters, and failed loads."""

import math
from collections import deque
from enum import StrEnum
from typing import Protocol

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.wire.admin import WorkerState

MAX_BACKOFF_SECONDS = 60.0
"""Longest wait between restarts of a failing model; a worker that ran this long resets the count."""


class Waiter(Protocol):
    """A caller that waits until a model is ready, or unloaded."""

    def grant(self, model: "ModelState") -> bool:
        """Resume the caller; False if it has been cancelled."""

    def reject(self, error: OsaurusError) -> None: ...


class SchedulerConfig(msgspec.Struct, frozen=True):
    """Limits that the scheduler enforces.

    Attributes:
        budget_bytes: memory for all models.
        max_waiting: requests that may wait for one model.
        wait_seconds: how long a queued model waits for running requests before it is rejected.
        min_residency_seconds: how long a ready model accepts requests although another model needs its memory.
    """

    budget_bytes: int = 2**62
    max_waiting: int = 64
    wait_seconds: float = 60.0
    min_residency_seconds: float = 10.0


class ModelSpec(msgspec.Struct, frozen=True):
    """A model to load.

    Attributes:
        key: identifies the model.
        needs_bytes: estimated minimum memory.
        keep_alive: seconds without requests until the model is unloaded; None keeps it loaded, 0 unloads it after its
            first request.
        planned: whether `needs_bytes` is this host's part of a distributed model, which no measurement replaces.
    """

    key: str
    needs_bytes: int = 0
    keep_alive: float | None = None
    planned: bool = False


class StopCause(StrEnum):
    """Why a worker is stopped.

    `MEMORY` is an eviction for another model or a smaller budget, `PRESSURE` one because the system is short of memory.
    """

    UNLOAD = "unload"
    IDLE = "idle"
    MEMORY = "memory"
    PRESSURE = "pressure"
    SHUTDOWN = "shutdown"


class ModelState(msgspec.Struct, eq=False):
    """One load of a model, from the request that queues it until its worker has exited.

    Attributes:
        needs_bytes: minimum memory: weights and one request. An estimate until the worker reports it.
        keep_alive, planned: as in `ModelSpec`.
        keep_alive_fixed: a load request set `keep_alive`; configuration changes do not affect it.
        position: place in the queue for memory.
        waiters: requests for the model with their positions, in order.
        unload_waiters: callers waiting for the exit.
        reserved_bytes: what weights and running requests may grow to, as the worker reports.
        limit_bytes: what the worker may use.
        started_at, ready_at: when the load began and ended.
        served: whether a request has completed.
        draining: new requests wait, because another model needs this one's memory.
        blocked_since: start of the time during which a queued model waits only for running requests.
    """

    key: str
    state: WorkerState = WorkerState.QUEUED
    needs_bytes: int = 0
    keep_alive: float | None = None
    keep_alive_fixed: bool = False
    planned: bool = False
    pinned: bool = False
    position: int = 0
    in_flight: int = 0
    waiters: deque[tuple[int, Waiter]] = msgspec.field(default_factory=deque)
    unload_waiters: list[Waiter] = msgspec.field(default_factory=list)
    reserved_bytes: int = 0
    limit_bytes: int = 0
    started_at: float | None = None
    ready_at: float | None = None
    last_used: float = 0.0
    served: bool = False
    draining: bool = False
    blocked_since: float | None = None

    @classmethod
    def queued(cls, spec: ModelSpec, *, pinned: bool, position: int) -> "ModelState":
        """Build the state of a model that waits for memory."""
        return cls(
            spec.key,
            needs_bytes=spec.needs_bytes,
            keep_alive=spec.keep_alive,
            planned=spec.planned,
            pinned=pinned,
            position=position,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model to load again."""
        return ModelSpec(self.key, self.needs_bytes, self.keep_alive, planned=self.planned)

    @property
    def held_bytes(self) -> int:
        """Memory that must not be given to other models now."""
        return max(self.needs_bytes, self.reserved_bytes) if self.in_flight else self.needs_bytes

    @property
    def busy(self) -> bool:
        return self.in_flight > 0 or self.state is WorkerState.STARTING

    @property
    def idle(self) -> bool:
        """Whether the model is ready, and no request uses it or waits for it."""
        return self.state is WorkerState.READY and not self.in_flight and not self.waiters

    @property
    def idle_until(self) -> float | None:
        """When the model is unloaded unless a request arrives; None if it is in use or stays loaded."""
        if not self.idle or self.keep_alive is None:
            return None
        return self.last_used + self.keep_alive if self.keep_alive or self.served else None

    def reject_all(self, error: OsaurusError) -> None:
        """Reject every waiting request."""
        while self.waiters:
            self.waiters.popleft()[1].reject(error)

    def grant_all(self, now: float) -> None:
        """Grant every waiting request."""
        while self.waiters:
            self.grant(self.waiters.popleft()[1], now)

    def grant(self, waiter: Waiter, now: float) -> None:
        """Grant a request; it counts as in flight only if its caller still exists."""
        if waiter.grant(self):
            self.in_flight += 1
            self.last_used = now

    def confirm_unload(self) -> None:
        """Resume the callers that wait for the exit."""
        for waiter in self.unload_waiters:
            waiter.grant(self)


class Failure(msgspec.Struct, frozen=True):
    """The last failure of a model's worker, the number of consecutive ones, and when requests may start it again."""

    error: OsaurusError
    count: int
    retry_at: float

    @classmethod
    def following(
        cls, previous: "Failure | None", error: OsaurusError, *, now: float, uptime: float = 0.0, min_wait: float = 0.0
    ) -> "Failure":
        """Build the failure after `previous`; the first one may be retried immediately, later ones back off."""
        count = 1 if previous is None or uptime >= MAX_BACKOFF_SECONDS else previous.count + 1
        backoff = min(2.0 ** (count - 2), MAX_BACKOFF_SECONDS) if count > 1 else 0.0
        return cls(error, count, now + max(backoff, min_wait))

    def rejection(self, now: float) -> OsaurusError:
        """Build the error for a request that arrives before `retry_at`."""
        seconds = math.ceil(self.retry_at - now)
        message = (
            f"{self.error.message}\nThe model failed {self.count} times in a row. Requests can start it again in "
            f'{seconds} s; "osaurusctl load" starts it now.'
        )
        rejection = type(self.error)(message, param=self.error.param, location=self.error.location)
        rejection.retry_after = seconds
        return rejection


class Effects(Protocol):
    """The actions of the scheduler. Implementations must not call the scheduler back synchronously."""

    def start(self, model: ModelState) -> None:
        """Start a worker that may use `limit_bytes`; report `ready` or `exited`."""

    def stop(self, model: ModelState, reason: OsaurusError, cause: StopCause) -> None:
        """Stop the worker in any state and fail its requests with `reason`; report `exited`."""

    def update_limit(self, model: ModelState) -> None:
        """Send the worker its new `limit_bytes`."""
