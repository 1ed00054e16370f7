"""What a soak observed. The verdict depends on nothing else. Times are seconds of the monotonic clock."""

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CORRECT, WRONG, DISCONNECTED = "correct", "wrong", "disconnected"
"""Results of requests without an error: the expected response, another one, or the client disconnected on purpose."""


@dataclass(frozen=True)
class Outcome:
    """How one request ended. `result` is `CORRECT`, `WRONG`, `DISCONNECTED` or an error code."""

    kind: str
    model: str
    started: float
    ended: float
    result: str
    detail: str = ""


class FaultKind(StrEnum):
    """Actions of the operator that can make requests fail."""

    KILL = "kill"
    UNLOAD = "unload"
    PIN = "pin"
    SHORT_QUEUE = "short queue"


@dataclass
class Fault:
    """An action on a model, or on all of them, and how long it lasted."""

    kind: FaultKind
    model: str | None = None
    started: float = field(default_factory=time.monotonic)
    ended: float = math.inf

    def end(self) -> None:
        self.ended = time.monotonic()


@dataclass(frozen=True)
class Sample:
    """Resident memory of the daemon and of its workers, by pid."""

    time: float
    daemon_bytes: int
    worker_bytes: dict[int, int]


@dataclass(frozen=True)
class Inventory:
    """What an idle daemon has open."""

    descriptors: Counter[str]
    tasks: Counter[str]
    processes: list[str]


@dataclass(frozen=True)
class WorkerLoad:
    """Requests and reserved memory of a worker that should be idle."""

    model: str
    in_flight: int
    waiting: int
    reserved_bytes: int


@dataclass
class Evidence:
    """All observations.

    Attributes:
        idle_loads: workers before the load phase, when they were idle.
        final_loads: workers after the load phase.
        survivor_pid: the worker that is never killed or unloaded.
        instances: instance ids of the daemon; more than one means that it restarted.
        latencies: response times of `/health` in seconds, a measure of the event loop's lag.
    """

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    actions: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    before: Inventory | None = None
    after: Inventory | None = None
    idle_loads: list[WorkerLoad] = field(default_factory=list)
    final_loads: list[WorkerLoad] = field(default_factory=list)
    survivor_pid: int = 0
    instances: set[str] = field(default_factory=set)
    log: list[dict[str, Any]] = field(default_factory=list)
