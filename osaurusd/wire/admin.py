"""Types of the admin API, which the Unix socket serves under `/v0/`.

Requests reject unknown fields. Replies are read leniently, so that an older `osaurusctl` understands a newer daemon.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from osaurusd.wire.drain import DrainStatus
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.groups import LeaseInfo, RankInfo
from osaurusd.wire.keys import Protection
from osaurusd.wire.lineage import GroupSize, ImportRecord, Lineage, Origin
from osaurusd.wire.placement import PlacementInfo, SplitSetting
from osaurusd.wire.quantization import ImportQuantization, QuantizationReport
from osaurusd.wire.residency import LoadPhases

API_VERSION = 1
"""Incremented on incompatible changes. Every admin request carries it."""

API_HEADER = "Osaurus-Api"
VERSION_HEADER = "Osaurus-Version"

SOCKET_HOST = "osaurusd"
"""The `Host` header of requests over the Unix socket. A browser cannot be made to send it."""

JSON_LINES = "application/jsonl"
"""Media type of streamed responses: one JSON document per line."""


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
    DRAIN = "/v0/drain"
    SHUTDOWN = "/v0/shutdown"


class Availability(StrEnum):
    """Whether a model on disk can be served."""

    AVAILABLE = "available"
    PARTIAL = "partial"
    UNUSABLE = "unusable"


class WorkerState(StrEnum):
    """State of a model's worker process: `queued` waits for memory, `failed` means that it crashed."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


IN_MEMORY = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.STOPPING})
"""States in which a process exists or is being created."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that runs, waits for memory, or crashed.

    Attributes:
        memory_bytes: what the system attributes to the process (on macOS its footprint, elsewhere resident memory), or
            what MLX holds, whichever is larger.
        needs_bytes: minimum memory, which counts against the budget: weights and one request. An estimate until the
            model is loaded, then measured.
        limit_bytes: memory that the worker may use.
        reserved_bytes: memory that the worker and its current requests may grow to.
        idle_left_seconds: time until the idle model is unloaded; null while it is in use, and if it stays loaded.
        last_exit: why the previous worker exited.
        ranks: the parts of a model that runs on several hosts; empty for others.
        lease: set if the worker is a rank of another host's model, which this host lends memory.
    """

    model: str
    state: WorkerState
    pid: int | None = None
    device: str | None = None
    memory_bytes: int = 0
    needs_bytes: int = 0
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
    ranks: list[RankInfo] = []
    lease: LeaseInfo | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk.

    Attributes:
        reason: why the model cannot be served, unless `state` is `available`.
        task: `generate`, `embed` or `rerank`.
        share: downloaded share of an unfinished pull, from 0 to 1.
        vision: whether the model accepts images.
        vision_refusal: why a model with a vision tower does not accept images.
    """

    name: str
    repo: str
    path: str
    source: str
    state: Availability
    bytes: int
    created: int
    reason: str | None = None
    task: str = "generate"
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    aliases: list[str] = []
    worker: WorkerInfo | None = None
    share: float | None = None
    vision: bool = False
    vision_refusal: str | None = None


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int


class ModelDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the files of a model reveal without loading it.

    Attributes:
        needs_bytes: as in `WorkerInfo`.
        weights_bytes: memory for the weights.
        kv_bytes_per_token: memory for each token of context; null if the model's config does not determine it.
        full_context_bytes: memory for the weights and a full context; null like `kv_bytes_per_token`.
        lineage: how the model was quantized, if that was done here.
        imported: where the model comes from, if it was imported.
        placement: over which hosts the model is distributed; null for one process on this host.
    """

    model: ModelInfo
    commit: str | None = None
    license: str | None = None
    tools: bool = False
    reasoning: bool = False
    vision: bool = False
    temperature: float | None = None
    top_p: float | None = None
    files: list[FileInfo] = []
    needs_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: int | None = None
    full_context_bytes: int | None = None
    lineage: Lineage | None = None
    imported: ImportRecord | None = None
    placement: PlacementInfo | None = None


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of the daemon.

    Attributes:
        instance: random id of this run of the daemon.
        memory_used_bytes: the part of `memory_budget_bytes` that is reserved for models.
        faults: current problems, one line each.
        serving: false in degraded mode: TCP is closed, `faults` has the reason, and the daemon recovers automatically
            once it is fixed.
        protection: access over TCP; null in degraded mode.
        drain: whether the daemon accepts requests.
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
    drain: DrainStatus = DrainStatus()


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Load `model`. It is unloaded after `keep_alive_seconds` of idling; a negative value keeps it loaded.

    `hosts` are paired hosts that run the model together with this one, instead of the configured ones, until it is
    unloaded by a request; an empty list means this host only. `split` is how the model is divided.
    """

    model: str
    keep_alive_seconds: Annotated[float, msgspec.Meta(ge=-1, le=10**9)] | None = None
    hosts: list[str] | None = None
    split: SplitSetting | None = None


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unload `model`, or every loaded model that is not pinned if it is null.

    `force` includes pinned models and models with running requests, which fail.
    """

    model: str | None = None
    force: bool = False


class UnloadReply(msgspec.Struct, frozen=True, kw_only=True):
    unloaded: list[str]


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Import the MLX folder or `.gguf` file at the absolute path `path`, optionally under `name`.

    `files` is a Unix socket from which the import process receives the open files, if it may not be permitted to open
    them; see `wire.open_files`. `origin` is for models of other programs. `quantize` and `group_size` say how to store
    the matrices of a GGUF file.
    """

    path: str
    name: str | None = None
    files: str | None = None
    origin: Origin | None = None
    quantize: ImportQuantization = ImportQuantization.AUTO
    group_size: GroupSize = 32


class DetailsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class RemoveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove `models` from disk. Models in use require `force`. `dry_run` only reports what would be removed."""

    models: list[str]
    force: bool = False
    dry_run: bool = False


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A removed model (with `dry_run`, one that would be removed) and the disk space freed, without shared files."""

    name: str
    repo: str
    bytes: int


class RemoveReply(msgspec.Struct, frozen=True, kw_only=True):
    removed: list[Removed]


class AliasRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make `alias` another name of the model `target`, or remove the alias if `target` is null."""

    alias: str
    target: str | None = None


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    alias: str
    target: str


class PruneRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove files that unfinished imports and pulls left behind. `dry_run` only lists them."""

    dry_run: bool = False


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    bytes: int
    what: str


class PruneReply(msgspec.Struct, frozen=True, kw_only=True):
    leftovers: list[Leftover]


class ReloadReply(msgspec.Struct, frozen=True, kw_only=True):
    """Changed keys that are in force now, and changed keys that need a restart."""

    applied: list[str]
    needs_restart: list[str]


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class VerifyProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """`done` of `total` bytes are hashed; `file` is in progress."""

    file: str
    done: int
    total: int


class FileState(StrEnum):
    """A file compared with its recorded checksum."""

    INTACT = "intact"
    CHANGED = "changed"
    MISSING = "missing"
    UNRECORDED = "unrecorded"


class VerifiedFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    state: FileState


class VerifyDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of a completed verification, whether files match or not."""

    model: str
    files: list[VerifiedFile]


class VerifyFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    error: ErrorBody


VerifyEvent = VerifyProgress | VerifyDone | VerifyFailed


class ShutdownReply(msgspec.Struct, frozen=True, kw_only=True):
    pid: int


class ImportProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """Progress of a running import: `done` of `total` bytes of `stage`."""

    stage: str
    done: int
    total: int


class ImportDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last line of a successful import. `quantization` is null unless a GGUF file was imported."""

    model: ModelInfo
    quantization: QuantizationReport | None = None


class ImportErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """The last line of a failed import. Its files have been removed."""

    error: ErrorBody


ImportEvent = ImportProgress | ImportDone | ImportErrorEvent
