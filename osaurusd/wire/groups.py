"""Types of models that run on several hosts: what the daemons tell each other, and what the admin API shows.

The *leader* serves the model and starts one *rank* on each host. A *follower* lends memory for a rank and runs it.
Their control stream is a WebSocket: its text messages are the unions below, and its binary messages are frames of a
worker.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.placement import Manifest, Split, Versions

RANKS_PATH = "/v0/ranks"
"""Path of the control stream."""

MAX_RANKS = 16

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]


class RankOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings of the leader that all ranks share; the fields are those of `rpc.messages.Load`."""

    context_length: int | None = None
    dequantize: Literal["auto", "always", "never"] = "auto"
    cache_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2
    wire: Literal["auto", "never", "always"] = "auto"


RdmaDevice = Annotated[str, msgspec.Meta(pattern=r"\A\w{1,64}\Z")]


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the messages of a control stream."""


# In both directions


class Ping(_Message, frozen=True, tag="ping"):
    """Asks for a `Pong` with the same `at`, a time of the sender's clock."""

    at: float


class Pong(_Message, frozen=True, tag="pong"):
    at: float


# Leader to follower


class StartRank(_Message, frozen=True, tag="start"):
    """The first message: reserve memory, get the model's files, and start a rank.

    Attributes:
        group: the model's name on the leader. A leader has one rank of a group on each host.
        epoch: number of this start of the group; a later epoch ends the rank of an earlier one.
        versions: those of the leader, which the follower's must equal.
        rank, size: which of how many ranks.
        layers: for a pipeline, the number of layers of each rank, rank 0 first.
        own_layers: for a pipeline, the first layer of this rank and the one after its last. It needs only their files.
        needs_bytes: minimum memory of the rank.
        requested_bytes: memory with which the rank can hold as many tokens as rank 0; it gets less if the host can
            lend little.
    """

    group: Name
    epoch: int
    versions: Versions
    rank: Annotated[int, msgspec.Meta(ge=1, lt=MAX_RANKS)]
    size: Annotated[int, msgspec.Meta(ge=2, le=MAX_RANKS)]
    split: Split
    needs_bytes: Annotated[int, msgspec.Meta(gt=0)]
    requested_bytes: Bytes
    manifest: Manifest
    layers: Annotated[list[int], msgspec.Meta(max_length=MAX_RANKS)] = []
    own_layers: tuple[int, int] | None = None
    options: RankOptions = RankOptions()


class ConnectRank(_Message, frozen=True, tag="connect"):
    """All ranks are ready: connect them, and load the model.

    Attributes:
        addresses: address and port of each rank, `10.0.0.2:5123`.
        secret: known to the ranks of this epoch only.
        timeout_seconds: a rank that has not connected by then exits.
        rdma_devices: the RDMA device of each rank; empty for TCP.
    """

    addresses: Annotated[list[str], msgspec.Meta(min_length=2, max_length=MAX_RANKS)]
    secret: Annotated[str, msgspec.Meta(min_length=32, max_length=256)]
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 60.0
    rdma_devices: Annotated[list[RdmaDevice], msgspec.Meta(max_length=2)] = []


class StopRank(_Message, frozen=True, tag="stop"):
    """End the rank. The follower confirms with `RankExited`."""


# Follower to leader


class RankStage(StrEnum):
    """What a follower does before its rank is ready."""

    RESERVING = "reserving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STARTING = "starting"


class RankProgress(_Message, frozen=True, tag="progress"):
    """What the follower is doing; `done` of `total` bytes."""

    stage: RankStage
    done: int = 0
    total: int = 0


class RankReady(_Message, frozen=True, tag="ready"):
    """The rank is ready to connect, and will listen on this address. `lease_bytes` is the memory reserved for it."""

    address: str
    lease_bytes: Bytes
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class RankStatus(_Message, frozen=True, tag="status"):
    """The rank's process: its memory, and whether it is suspended."""

    memory_bytes: int
    suspended: bool = False


class RankFailed(_Message, frozen=True, tag="failed"):
    """The follower cannot start the rank. The last message."""

    code: ErrorCode
    message: str


class RankExited(_Message, frozen=True, tag="exited"):
    """The rank has exited, and its memory is free again. The last message."""

    message: str


ToFollower = StartRank | ConnectRank | StopRank | Ping | Pong
ToLeader = RankProgress | RankReady | RankStatus | RankFailed | RankExited | Ping | Pong
StreamMessage = ToFollower | ToLeader

TO_FOLLOWER: msgspec.json.Decoder[ToFollower] = msgspec.json.Decoder(ToFollower)
TO_LEADER: msgspec.json.Decoder[ToLeader] = msgspec.json.Decoder(ToLeader)


# Admin API


class RankState(StrEnum):
    """State of one rank of a group. A waiting one is ready to connect, and waits for the others."""

    CONTACTING = "contacting"
    RESERVING = "reserving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STARTING = "starting"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    LOST = "lost"


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A rank of a model that runs on several hosts.

    Attributes:
        host: the host; null for this one.
        needs_bytes: memory that the host reserves for the rank.
        memory_bytes: memory that the rank uses.
        plan: number of the last step that the rank has executed; for rank 0, that it has sent.
        behind: steps that the rank has not executed yet.
        round_trip_seconds: of the connection between the daemons; null for this host.
        sent_bytes: sent to the host's daemon since the start.
    """

    rank: int
    host: str | None
    state: RankState
    needs_bytes: int = 0
    memory_bytes: int = 0
    plan: int = 0
    behind: int = 0
    round_trip_seconds: float | None = None
    sent_bytes: int = 0


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that this host lends to the group of another one.

    Attributes:
        owner: the host that leads the group.
    """

    owner: str
    rank: int
    size: int
    split: Split
