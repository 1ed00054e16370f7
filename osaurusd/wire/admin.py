"""The admin API's types: what travels over the Unix socket under `/v0/`.

Requests refuse unknown fields; replies are read leniently, so that an older CLI understands a newer daemon.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.keys import Protection
from osaurusd.wire.residency import LoadPhases

API_VERSION = 1
"""Raised when either side could misread the other; compared on every admin request."""

API_HEADER = "Osaurus-Api"
VERSION_HEADER = "Osaurus-Version"

SOCKET_HOST = "osaurusd"
"""The `Host` that clients of the Unix socket send. Browsers cannot be made to send it."""


class Route(StrEnum):
    """Paths of the admin API."""

    STATUS = "/v0/status"
    DIAGNOSIS = "/v0/diagnosis"
    MODELS = "/v0/models"
    WORKERS = "/v0/workers"
    LOAD = "/v0/load"
    UNLOAD = "/v0/unload"
    PINS = "/v0/pins"
    EVENTS = "/v0/events"
    IMPORTS = "/v0/imports"
    DETAILS = "/v0/models/details"
    REMOVE = "/v0/models/remove"
    VERIFY = "/v0/models/verify"
    ALIASES = "/v0/aliases"
    PRUNE = "/v0/prune"
    RELOAD = "/v0/reload"
    SHUTDOWN = "/v0/shutdown"


class ModelState(StrEnum):
    """Whether a model on disk can be served."""

    AVAILABLE = "available"
    PARTIAL = "partial"
    UNUSABLE = "unusable"


class WorkerState(StrEnum):
    """Where a model's worker process is in its life: `queued` waits for memory, `failed` ended by itself."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


IN_MEMORY = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.STOPPING})
"""The states in which there is a process, or is about to be."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process, one that waits for memory, or one that ended by itself.

    `memory_bytes` is resident memory or what MLX holds, whichever is more; `estimated_bytes` what the model is thought
    to need of the budget, or known to once it runs; `limit_bytes` what it may use; `reserved_bytes` what it and the
    requests that it has may grow to. `idle_left_seconds` is after what time it will be unloaded, null while it is in
    use and where it never is. `last_exit` says how its last worker died.
    """

    model: str
    state: WorkerState
    pid: int | None = None
    device: str | None = None
    memory_bytes: int = 0
    estimated_bytes: int = 0
    limit_bytes: int = 0
    reserved_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0
    tokens_per_second: float = 0.0
    pinned: bool = False
    load_seconds: float | None = None
    load_phases: LoadPhases | None = None
    idle_seconds: float | None = None
    idle_left_seconds: float | None = None
    last_exit: str | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model on disk. `reason` says what is missing or wrong where `state` is not `available`.

    `share` is how much of a model that a pull has not finished is here, from 0 to 1.
    """

    name: str
    repo: str
    path: str
    source: str
    state: ModelState
    bytes: int
    created: int
    reason: str | None = None
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    aliases: list[str] = []
    worker: WorkerInfo | None = None
    share: float | None = None


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int


class ModelDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one model without loading it.

    `weights_bytes` is what the weights take in memory; `kv_bytes_per_token` what each token of context adds, and
    `full_context_bytes` weights and a full context together, where the config tells.
    """

    model: ModelInfo
    commit: str | None = None
    licence: str | None = None
    tools: bool = False
    reasoning: bool = False
    vision: bool = False
    temperature: float | None = None
    top_p: float | None = None
    files: list[FileInfo] = []
    weights_bytes: int = 0
    kv_bytes_per_token: int | None = None
    full_context_bytes: int | None = None


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon as a whole. `instance` is a new random id on every start.

    `memory_used_bytes` of `memory_budget_bytes` are held by models, as they are reckoned.
    One that is not `serving` has its reason in `faults`, and goes on by itself once that is mended; nobody gets in
    over TCP then, and `protection` is null.
    """

    version: str
    api_version: int
    pid: int
    instance: str
    uptime_seconds: float
    endpoints: list[str]
    socket: str
    config_file: str
    log_file: str
    models_dir: str
    default_model: str | None
    models_available: int
    workers: list[WorkerInfo]
    memory_budget_bytes: int = 0
    memory_used_bytes: int = 0
    faults: list[str] = []
    serving: bool = True
    protection: Protection | None = None


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Load `model`. `keep_alive_seconds` is how long it stays once idle, until it is unloaded; below 0 is for ever."""

    model: str
    keep_alive_seconds: Annotated[float, msgspec.Meta(ge=-1, le=10**9)] | None = None


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unload `model`, or if it is null every loaded one that is not pinned; `force` also pinned ones, and those that
    are serving requests, which fail."""

    model: str | None = None
    force: bool = False


class UnloadReply(msgspec.Struct, frozen=True, kw_only=True):
    unloaded: list[str]


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bring in the MLX folder or `.gguf` file at the absolute path `path`, as `name` if given."""

    path: str
    name: str | None = None


class DetailsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class RemoveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove `models` from disk; one that is in use is refused unless `force`. `dry_run` only tells what would go."""

    models: list[str]
    force: bool = False
    dry_run: bool = False


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is gone, or would be, and the bytes that come free: what no other model shares."""

    name: str
    repo: str
    bytes: int


class RemoveReply(msgspec.Struct, frozen=True, kw_only=True):
    removed: list[Removed]


class AliasRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let `alias` mean the model `target` too; with `target` null, no longer."""

    alias: str
    target: str | None = None


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    alias: str
    target: str


class PruneRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove our own leftovers; `dry_run` only lists them."""

    dry_run: bool = False


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    bytes: int
    what: str


class PruneReply(msgspec.Struct, frozen=True, kw_only=True):
    leftovers: list[Leftover]


class ReloadReply(msgspec.Struct, frozen=True, kw_only=True):
    """Keys whose new values are in force, and keys whose new values need a restart."""

    applied: list[str]
    needs_restart: list[str]


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class VerifyProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """`done` of `total` bytes hashed; `file` is the one being read."""

    file: str
    done: int
    total: int


class FileState(StrEnum):
    """How a file compares with what the store recorded of it."""

    INTACT = "intact"
    CHANGED = "changed"
    MISSING = "missing"
    UNRECORDED = "unrecorded"


class VerifiedFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    state: FileState


class VerifyDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of a verification that could be carried out, whatever it found."""

    model: str
    files: list[VerifiedFile]


class VerifyFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    error: ErrorBody


VerifyEvent = VerifyProgress | VerifyDone | VerifyFailed


class ShutdownReply(msgspec.Struct, frozen=True, kw_only=True):
    pid: int


class ImportProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """A line of a running import: `done` of `total` bytes of `stage`."""

    stage: str
    done: int
    total: int


class ImportDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of an import that worked."""

    model: ModelInfo


class ImportRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """The last line of an import that failed; nothing was left behind."""

    error: ErrorBody


ImportEvent = ImportProgress | ImportDone | ImportRefused
