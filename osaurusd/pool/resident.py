"""What the scheduler is about: models in memory, those who want them, and the rules for both."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from osaurusd.errors import OsaurusError
from osaurusd.wire.admin import WorkerState


class Ticket(Protocol):
    """One who waits: for a model to be usable, or for it to be gone."""

    def grant(self, resident: "Resident") -> bool:
        """Let the holder go on; False if nobody is there any more."""

    def refuse(self, error: OsaurusError) -> None: ...


@dataclass(frozen=True)
class Rules:
    """What the scheduler goes by.

    `max_waiting` requests may wait for one model. Requests that run may hold a model that needs their room up for
    `wait_seconds`; before that, a model has `min_residency_seconds` in which it takes requests whoever waits.
    """

    budget_bytes: int = 2**62
    max_waiting: int = 64
    wait_seconds: float = 60.0
    min_residency_seconds: float = 10.0


@dataclass(frozen=True)
class Demand:
    """A model that somebody wants: the bytes that it is thought to need, and how long it stays once idle.

    `keep_alive` is in seconds; None is for ever, 0 until its first request has ended.
    """

    key: str
    needs_bytes: int = 0
    keep_alive: float | None = None


class Cause(StrEnum):
    """Why a worker is ended."""

    UNLOAD = "unload"
    IDLE = "idle"
    ROOM = "room"
    SHUTDOWN = "shutdown"


@dataclass(eq=False)
class Resident:
    """A model that has a worker process, or is to get one or lose one.

    `keep_alive` is as in `Demand`; `keep_alive_asked` says that somebody wanted it for this load. `waiting` are those
    who want the model, each with the number of its turn; `turn` is that of the first one. `reserved_bytes` is what it
    and its requests may grow to, as its worker says; `limit_bytes` what it may use. One that is `closing` takes no new
    requests, for another model waits for its room; `blocked_since` is when one that waits began to wait for nothing
    but the end of requests.
    """

    key: str
    state: WorkerState = WorkerState.QUEUED
    needs_bytes: int = 0
    keep_alive: float | None = None
    keep_alive_asked: bool = False
    turn: int = 0
    in_flight: int = 0
    waiting: deque[tuple[int, Ticket]] = field(default_factory=deque)
    unloading: list[Ticket] = field(default_factory=list)
    reserved_bytes: int = 0
    limit_bytes: int = 0
    ready_at: float | None = None
    last_used: float = 0.0
    served: bool = False
    closing: bool = False
    blocked_since: float | None = None

    @property
    def holds_bytes(self) -> int:
        """What it cannot do without now."""
        return max(self.needs_bytes, self.reserved_bytes) if self.in_flight else self.needs_bytes

    @property
    def idle_until(self) -> float | None:
        """When it goes if nobody comes; None for never, or while it is in use."""
        if self.state is not WorkerState.READY or self.in_flight or self.waiting or self.keep_alive is None:
            return None
        return self.last_used + self.keep_alive if self.keep_alive or self.served else None


@dataclass(frozen=True)
class Failure:
    """How a model's worker ended by itself, for the how-manieth time in a row, and until when it is left alone."""

    error: OsaurusError
    deaths: int
    retry_at: float


class Effects(Protocol):
    """What the scheduler has done; none of these may call back before the event that caused it is over."""

    def start(self, resident: Resident) -> None:
        """Bring up a worker that may use `limit_bytes`; answer with `ready` or `exited`."""

    def stop(self, resident: Resident, reason: OsaurusError, cause: Cause) -> None:
        """End the worker, whatever it is doing, and fail its requests with `reason`; answer with `exited`."""

    def limit(self, resident: Resident) -> None:
        """Let the worker know what its `limit_bytes` is now."""
