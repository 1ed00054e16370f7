"""What a soak has seen; its verdict is made from this and nothing else. Times are monotonic seconds."""

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

RIGHT, WRONG, LEFT = "right", "wrong", "left"
"""How a request ended that got no error: answered as it had to be, not so, or its client had left on purpose."""


@dataclass(frozen=True)
class Outcome:
    """One request: what kind it was, and how it ended: `RIGHT`, `WRONG`, `LEFT`, or the code of an error."""

    kind: str
    model: str
    began: float
    ended: float
    result: str
    detail: str = ""


class FaultKind(StrEnum):
    """What an operator does that requests may suffer from."""

    KILL = "kill"
    UNLOAD = "unload"
    PIN = "pin"
    SHORT_QUEUE = "short queue"


@dataclass
class Fault:
    """Something done to a model, or to all of them, and for how long it lasted."""

    kind: FaultKind
    model: str | None = None
    began: float = field(default_factory=time.monotonic)
    ended: float = math.inf

    def end(self) -> None:
        self.ended = time.monotonic()


@dataclass(frozen=True)
class Sample:
    """Resident bytes of the daemon and of its workers, by pid."""

    at: float
    daemon_bytes: int
    worker_bytes: dict[int, int]


@dataclass(frozen=True)
class Inventory:
    """What the daemon has while nobody asks anything of it."""

    descriptors: Counter[str]
    tasks: Counter[str]
    processes: list[str]


@dataclass(frozen=True)
class Load:
    """What a worker that ought to be idle has under way."""

    model: str
    in_flight: int
    waiting: int
    reserved_bytes: int


@dataclass
class Evidence:
    """Everything. `resting` are workers that had nothing to do before; `survivor` is one that nobody harmed."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    chores: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    before: Inventory | None = None
    after: Inventory | None = None
    resting: list[Load] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    survivor: int = 0
    instances: set[str] = field(default_factory=set)
    log: list[dict[str, Any]] = field(default_factory=list)
