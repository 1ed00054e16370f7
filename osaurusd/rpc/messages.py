"""Messages between the daemon and its child processes: a closed union of message types in each direction."""

from typing import Literal

import msgspec

from osaurusd.inference.events import Event
from osaurusd.inference.request import GenerationRequest, Location
from osaurusd.wire.admin import FileState
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what frames are made of."""


# Daemon to worker


class Load(Frame, frozen=True, tag="load"):
    """Load the model in the folder `path`. Limits are in bytes; None leaves MLX's own.

    `prefix_cache_bytes` bounds what is kept of earlier prompts, 0 keeps nothing. A request that finds `max_waiting`
    others waiting for their turn is refused. `stall_seconds` is how long running answers may stall while a prompt is
    processed, if that is longer than a few of their own steps.
    """

    path: str
    context_length: int | None = None
    dequantize: Literal["auto", "always", "never"] = "auto"
    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    wired_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


class Limits(Frame, frozen=True, tag="limits"):
    """Use no more than this from now on; the fields mean what they mean in `Load`."""

    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    wired_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0


class Generate(Frame, frozen=True, tag="generate"):
    """Run a request. A `continuation` belongs to a client request that has started; a full queue does not reject it."""

    id: int
    request: GenerationRequest
    continuation: bool = False


class Cancel(Frame, frozen=True, tag="cancel"):
    """Drop request `id` at the next step; unknown or finished ids are ignored."""

    id: int


class Shutdown(Frame, frozen=True, tag="shutdown"):
    """Drop everything and exit 0."""


# Worker to daemon


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame: the version of the package that the worker runs, and how long its imports took."""

    version: str
    import_seconds: float = 0.0


class Loaded(Frame, frozen=True, tag="loaded"):
    """The model is ready.

    `dtype` is what the weights are computed in. `memory_bytes` is what it takes now, `least_bytes` what it takes while
    it serves one request of ordinary length; 0 if that is not known. `working_set_bytes` is how much memory the GPU
    recommends to use at most, for all processes together; None where there is no GPU.
    """

    device: str
    dtype: str
    memory_bytes: int
    batched: bool
    least_bytes: int = 0
    working_set_bytes: int | None = None


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    message: str


class Output(Frame, frozen=True, tag="output"):
    """An event of request `id`."""

    id: int
    event: Event


class Failed(Frame, frozen=True, tag="failed"):
    """Request `id` failed; no further frame follows. `location` is the part of the request at fault, if one is."""

    id: int
    code: ErrorCode
    message: str
    location: Location | None = None


class Stats(Frame, frozen=True, tag="stats"):
    """Bytes that MLX holds for arrays and keeps in its own cache of freed buffers, and those of kept prompts.

    `reserved_bytes` is what weights and the requests under way may grow to.
    """

    active_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int = 0
    reserved_bytes: int = 0


class Pulse(Frame, frozen=True, tag="pulse"):
    """The worker is getting on: sent about once a second while `progress` moves.

    `progress` only grows: by the bytes of weights that are loaded, by forward passes afterwards. `reserved_bytes` as in
    `Stats`.
    """

    progress: int
    reserved_bytes: int = 0


# Importer to daemon


class Progress(Frame, frozen=True, tag="progress"):
    """`done` of `total` bytes of a stage of an import."""

    stage: str
    done: int
    total: int


class Imported(Frame, frozen=True, tag="imported"):
    """The folder that was asked for is complete."""


class ImportFailure(Frame, frozen=True, tag="import_failure"):
    message: str


# Store process to daemon


class Deletion(Frame, frozen=True, tag="deletion"):
    """The bytes that a deletion freed, or that a planned one would free."""

    freed_bytes: int


class Hashing(Frame, frozen=True, tag="hashing"):
    """`done` of `total` bytes of a model hashed; `file` is the one being read."""

    file: str
    done: int
    total: int


class HashedFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    state: FileState


class Hashed(Frame, frozen=True, tag="hashed"):
    """How every file of a model compares with what the store recorded."""

    files: list[HashedFile]


class StoreFailure(Frame, frozen=True, tag="store_failure"):
    message: str


# Hub process to daemon


class Pulling(Frame, frozen=True, tag="pulling"):
    """How far a download is; the fields mean what they mean in `wire.pulls.PullInfo`."""

    stage: PullStage
    done: int = 0
    total: int = 0
    hashed: int = 0
    to_hash: int = 0
    bytes_per_second: float = 0
    commit: str | None = None
    note: str | None = None


class Pulled(Frame, frozen=True, tag="pulled"):
    """The model is in the cache, whole. `bytes` is the size of its files."""

    commit: str
    bytes: int


class HubModel(Part, frozen=True):
    """A model that the hub knows. `bytes` is the size of its weights."""

    repo: str
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    gated: bool = False


class HubModels(Frame, frozen=True, tag="hub_models"):
    models: list[HubModel]


class HubFailure(Frame, frozen=True, tag="hub_failure"):
    code: ErrorCode
    message: str


ToWorker = Load | Limits | Generate | Cancel | Shutdown
FromWorker = Hello | Loaded | LoadFailed | Output | Failed | Stats | Pulse
FromImporter = Progress | Imported | ImportFailure
FromStore = Deletion | Hashing | Hashed | StoreFailure
FromHub = Pulling | Pulled | HubModels | HubFailure

TO_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FROM_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
FROM_IMPORTER: msgspec.json.Decoder[FromImporter] = msgspec.json.Decoder(FromImporter)
FROM_STORE: msgspec.json.Decoder[FromStore] = msgspec.json.Decoder(FromStore)
FROM_HUB: msgspec.json.Decoder[FromHub] = msgspec.json.Decoder(FromHub)
