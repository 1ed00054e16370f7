"""The admin API's types: what travels over the Unix socket under `/v0/`.

Requests refuse unknown fields; replies are read leniently, so that an older CLI understands a newer daemon.
"""

from enum import StrEnum

import msgspec

from osaurusd.wire.errors import ErrorBody

API_VERSION = 1
"""Raised when either side could misread the other; compared on every admin request."""

API_HEADER = "Osaurus-Api"
VERSION_HEADER = "Osaurus-Version"

SOCKET_HOST = "osaurusd"
"""The `Host` that clients of the Unix socket send. Browsers cannot be made to send it."""


class Route(StrEnum):
    """Paths of the admin API."""

    STATUS = "/v0/status"
    MODELS = "/v0/models"
    WORKERS = "/v0/workers"
    LOAD = "/v0/load"
    UNLOAD = "/v0/unload"
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
    """Where a model's worker process is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process. `memory_bytes` is resident memory or what MLX holds, whichever is more."""

    model: str
    state: WorkerState
    pid: int | None = None
    device: str | None = None
    memory_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0
    load_seconds: float | None = None
    idle_seconds: float | None = None


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
    """The daemon as a whole. `instance` is a new random id on every start."""

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
    faults: list[str] = []


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unload `model`, or every loaded one if it is null; `force` ends the requests that are running."""

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
