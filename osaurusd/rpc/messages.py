"""Messages between the daemon and its child processes: a closed union of message types in each direction."""

from typing import Literal

import msgspec

from osaurusd.inference.events import CandidateScores, Event
from osaurusd.inference.request import GenerationRequest, Location, ScoringRequest
from osaurusd.inference.retrieval import EmbedRequest, Pipeline, RerankRequest, Scores, Vectors
from osaurusd.rpc.framing import Frame as Frame
from osaurusd.rpc.framing import Part
from osaurusd.wire.errors import ErrorCode

WireSetting = Literal["auto", "never", "always"]


class RankSpec(Part, frozen=True):
    """The place of a worker in a group of ranks, which together run one model.

    Attributes:
        size: the number of ranks in the group.
        split: whether each rank has a part of every layer, or some of the layers.
        address: the address at which this rank accepts its neighbor in the ring.
        layers: for a pipeline, the number of layers by rank; rank 0 has the last layers. Empty divides them evenly.
    """

    rank: int
    size: int
    split: Literal["tensor", "pipeline"]
    address: str
    layers: tuple[int, ...] = ()


# Daemon to worker


class Load(Frame, frozen=True, tag="load"):
    """Load the model in the folder `path`.

    Attributes:
        task: selects the worker's runner.
        vision: whether the model accepts images.
        pipeline: how a model with the task `embed` embeds text.
        context_length: longest sequence in tokens; None if unknown.
        dequantize: whether to compute in float32 on a CPU; `auto` does if the weights fit into `memory_limit_bytes`.
        memory_limit_bytes: limit of everything MLX allocates; None keeps MLX's own limit.
        cache_limit_bytes: limit of freed buffers that MLX keeps; None keeps MLX's own limit.
        prefix_cache_bytes: limit of the prefix cache; 0 disables it.
        max_waiting: requests that may wait for a place in the batch before further ones are rejected.
        stall_seconds: how long prefill may delay running sequences, if that is longer than a few decode steps.
        feature_cache_bytes: limit of the features of recent images; 0 disables their cache.
        max_image_pixels: images with more pixels are rejected before they are decoded.
        wire: whether macOS must keep the weights in memory; `auto` wires those that fill most of the GPU's working set.
        rank: the place in a group of ranks; None for a model that one process runs. The limits are those of this rank,
            which replies with `RankReady`, and waits for `Connect`.
    """

    path: str
    task: Literal["generate", "embed", "rerank"] = "generate"
    vision: bool = False
    pipeline: Pipeline | None = None
    context_length: int | None = None
    dequantize: Literal["auto", "always", "never"] = "auto"
    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2
    feature_cache_bytes: int = 0
    max_image_pixels: int = 64_000_000
    wire: WireSetting = "auto"
    rank: RankSpec | None = None


class Connect(Frame, frozen=True, tag="connect"):
    """Join the group, and load this rank's part of the model; sent once all ranks are ready.

    Attributes:
        addresses: `ip:port` by rank.
        secret: shared secret of the group.
        epoch: the number of this start of the group.
        timeout_seconds: a rank that has not joined by then exits.
        rdma_devices: the device of each of two ranks that is connected to the other one; empty for TCP.
    """

    addresses: list[str]
    secret: str
    epoch: int
    timeout_seconds: float = 60.0
    rdma_devices: list[str] = msgspec.field(default_factory=list)


class Limits(Frame, frozen=True, tag="limits"):
    """Replace the memory limits; the fields are those of `Load`."""

    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0


class Generate(Frame, frozen=True, tag="generate"):
    """Run a request. Image and audio parts refer to the blobs of this frame.

    A `continuation` belongs to a client request of which an earlier part has started: a full queue does not reject it.
    """

    id: int
    request: GenerationRequest
    continuation: bool = False


class Embed(Frame, frozen=True, tag="embed"):
    """Embed texts."""

    id: int
    request: EmbedRequest


class Rerank(Frame, frozen=True, tag="rerank"):
    """Score documents."""

    id: int
    request: RerankRequest


class Score(Frame, frozen=True, tag="score"):
    """Score candidates."""

    id: int
    request: ScoringRequest


class Cancel(Frame, frozen=True, tag="cancel"):
    """Drop request `id` before the next step; unknown and completed ids are ignored."""

    id: int


class DropCaches(Frame, frozen=True, tag="drop_caches"):
    """Clear the prefix cache, and return freed buffers to the system. Running requests continue."""


class Shutdown(Frame, frozen=True, tag="shutdown"):
    """Drop all requests and exit with status 0."""


# Both


class Plan(Frame, frozen=True, tag="plan"):
    """What all ranks of a group execute next, in the order of the numbers, which start at 1.

    Rank 0 sends it, and daemons pass it on to the other ranks as it is, with its blobs. `operations` is a JSON array of
    the worker's `parallel.operations`.
    """

    number: int
    operations: msgspec.Raw


# Worker to daemon


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame: the version of the worker's package, and the duration of its imports."""

    version: str
    import_seconds: float = 0.0


class Loaded(Frame, frozen=True, tag="loaded"):
    """The model is ready.

    Attributes:
        dtype: the type in which the weights are computed.
        memory_bytes: memory that the model uses now.
        batched: whether several sequences can share a decode step.
        serving_bytes: memory while one request of ordinary length is served; 0 if unknown.
        working_set_bytes: the GPU's recommended limit for all processes together; None without a GPU.
    """

    device: str
    dtype: str
    memory_bytes: int
    batched: bool
    serving_bytes: int = 0
    working_set_bytes: int | None = None


class RankReady(Frame, frozen=True, tag="rank_ready"):
    """The reply of a rank to `Load`: it can read its part of the model, and will accept its neighbor at `port`."""

    port: int


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    message: str


class Output(Frame, frozen=True, tag="output"):
    """An event of request `id`. The data of `Vectors` is the blob of this frame."""

    id: int
    event: Event | Vectors | Scores | CandidateScores


class Failed(Frame, frozen=True, tag="failed"):
    """Request `id` failed; no further frame follows. `location` is the part of the request at fault, if one is."""

    id: int
    code: ErrorCode
    message: str
    location: Location | None = None


class Stats(Frame, frozen=True, tag="stats"):
    """Memory in bytes: MLX arrays, freed buffers that MLX keeps, and the prefix cache.

    `reserved_bytes` is what weights and running requests may grow to.
    """

    active_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int = 0
    reserved_bytes: int = 0


class Pulse(Frame, frozen=True, tag="pulse"):
    """A heartbeat, sent about once a second while `progress` increases.

    `progress` counts loaded bytes of weights, then forward passes. `reserved_bytes` is that of `Stats`. `plan` is the
    number of the last plan that rank 0 of a group has sent, or that another rank has executed.
    """

    progress: int
    reserved_bytes: int = 0
    plan: int = 0


Request = Generate | Embed | Rerank | Score
"""What starts a request."""

ToWorker = Load | Connect | Limits | Generate | Embed | Rerank | Score | Cancel | DropCaches | Plan | Shutdown
FromWorker = Hello | RankReady | Loaded | LoadFailed | Output | Failed | Stats | Pulse | Plan

TO_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FROM_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
