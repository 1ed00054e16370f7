"""Where the ranks of a distributed model run: what hosts tell each other, and what the admin API shows."""

from typing import Literal

import msgspec

Split = Literal["tensor", "pipeline"]
"""How a model is divided: each layer over all ranks, or whole layers."""

SplitSetting = Literal["auto", "tensor", "pipeline"]

Backend = Literal["ring", "jaccl"]
"""What the ranks exchange tensors with: TCP in a ring, or RDMA over Thunderbolt."""

Versions = dict[str, str]
"""Versions by package, of `COMMON_PACKAGES`, and that of the operating system as `system`."""

COMMON_PACKAGES = ("osaurusd", "mlx", "mlx-lm")
"""Packages of which all ranks of a model must have the same version: others compute different results."""


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
    """

    model: str
    digest: str
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
