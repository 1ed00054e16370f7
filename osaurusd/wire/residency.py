"""The admin API's types for which models are in memory."""

from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    """What can happen to a model."""

    QUEUED = "queued"
    REFUSED = "refused"
    LOADING = "loading"
    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    CRASHED = "crashed"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    PULL_QUEUED = "pull_queued"
    PULL_RUNNING = "pull_running"
    PULL_DONE = "pull_done"
    PULL_FAILED = "pull_failed"
    PULL_CANCELLED = "pull_cancelled"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that has happened to a model, at `time` in unix seconds.

    `cause` of an unloading is `unload` (somebody asked), `idle`, `room` (for another model) or `shutdown`; `reason` is
    for people. `seconds` is how long a load took, and `bytes` what the model takes.
    """

    kind: EventKind
    time: float
    model: str
    cause: str | None = None
    reason: str | None = None
    pid: int | None = None
    seconds: float | None = None
    bytes: int | None = None


class LoadPhases(msgspec.Struct, frozen=True, kw_only=True):
    """Where the seconds of a load went; with a spare worker the first two are none.

    `first_token_seconds` is from the first request to its first token; None until there was one.
    """

    spawn_seconds: float
    import_seconds: float
    weights_seconds: float
    first_token_seconds: float | None = None
    spare: bool = False


class PinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pin `model`, or with `pinned` false let it be evicted again."""

    model: str
    pinned: bool = True


class PinReply(msgspec.Struct, frozen=True, kw_only=True):
    """All pinned models by name, what they need together, and the budget, in bytes."""

    pinned: list[str]
    needs_bytes: int
    budget_bytes: int
