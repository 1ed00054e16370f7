"""Where the ranks of a distributed model run: what hosts tell each other, and what the admin API shows."""

from typing import Literal

import msgspec

Split = Literal["tensor", "pipeline"]
"""How a model is divided: each layer over all ranks, or whole layers."""

SplitSetting = Literal["auto", "tensor", "pipeline"]

Backend = Literal["ring", "jaccl"]
"""What the ranks exchange tensors with: TCP in a ring, or RDMA over Thunderbolt."""

Versions = dict[str, str]
"""Versions by package (`osaurusd`, `mlx`, `mlx-lm`), and that of the operating system as `system`."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the placement of a model depends on.

    Attributes:
        name: the paired host; None for this host, the leader.
        memory_bytes: memory for a rank.
        link_address: the address that the other ranks connect to.
        device: what its workers compute on.
        rdma_device: what connects it to the other host with RDMA; None if there is none, or it is not known which.
    """

    memory_bytes: int
    versions: Versions
    name: str | None = None
    link_address: str | None = None
    backend: Backend = "ring"
    device: Literal["cpu", "gpu"] = "gpu"
    rdma_device: str | None = None


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model.

    Attributes:
        path: relative to the model's folder.
        layers: the layers of which the file contains weights, if it contains no others; None if every rank needs it.
    """

    path: str
    size: int
    sha256: str
    layers: tuple[int, ...] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a model that its ranks must agree on.

    Attributes:
        model: the name of the model on the leader.
        digest: identifies all files together.
        config_digest: that of `config.json`.
    """

    model: str
    digest: str
    config_digest: str
    files: tuple[ManifestFile, ...]


class PlannedRank(msgspec.Struct, frozen=True, kw_only=True):
    """One rank: its host (null for this one), its layers as the first and the last one, and its memory."""

    needs_bytes: int
    host: str | None = None
    layers: tuple[int, int] | None = None


class PlacementInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Over which hosts a model is distributed.

    Attributes:
        hosts: the other hosts, as configured or requested.
        split: how the model is to be divided.
        chosen: how it was divided by the last load, and `reason` says why.
        ranks: the parts of the last load, that of this host first.
    """

    hosts: list[str]
    split: SplitSetting
    chosen: Split | None = None
    reason: str | None = None
    ranks: list[PlannedRank] = []
