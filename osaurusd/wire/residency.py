"""Admin API types for loaded models, and events."""

from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    """Kinds of events. The last five concern the daemon, all others a model.

    Leases are of memory that this host lends to another one.
    """

    QUEUED = "queued"
    REFUSED = "refused"
    LOADING = "loading"
    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    CACHES_DROPPED = "caches_dropped"
    CRASHED = "crashed"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    PULL_QUEUED = "pull_queued"
    PULL_RUNNING = "pull_running"
    PULL_DONE = "pull_done"
    PULL_FAILED = "pull_failed"
    PULL_CANCELLED = "pull_cancelled"
    RANK_STARTED = "rank_started"
    RANK_LOST = "rank_lost"
    LEASE_GRANTED = "lease_granted"
    LEASE_REFUSED = "lease_refused"
    LEASE_ENDED = "lease_ended"
    DRAINING = "draining"
    DRAINED = "drained"
    DRAIN_ENDED = "drain_ended"
    HOST_PAIRED = "host_paired"
    HOST_REMOVED = "host_removed"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event.

    Attributes:
        model: the model; empty if the event concerns the daemon.
        time: Unix seconds.
        cause: why a model is unloaded: `unload` (requested), `idle`, `memory` (for another model),
            `pressure` (the system is short of memory) or `shutdown`.
        reason: explanation for people.
        seconds: duration of a load.
        bytes: memory of the model, or of its rank.
        host: name of the paired host. For a lease, that of its owner.
        rank: the number of the part of the model.
    """

    kind: EventKind
    time: float
    model: str = ""
    cause: str | None = None
    reason: str | None = None
    pid: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    host: str | None = None
    rank: int | None = None


class LoadPhases(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of the phases of a load.

    Attributes:
        spawn_seconds, import_seconds: 0 if a standby worker was used.
        first_token_seconds: from the first request to its first token; null before that.
        standby: whether a standby worker was used.
    """

    spawn_seconds: float
    import_seconds: float
    weights_seconds: float
    first_token_seconds: float | None = None
    standby: bool = False


class PinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pin `model`, or unpin it if `pinned` is false."""

    model: str
    pinned: bool = True


class PinReply(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the pinned models, the memory they need together, and the memory budget."""

    pinned: list[str]
    needs_bytes: int
    budget_bytes: int
