"""Admin API types for downloads from the Hugging Face Hub and searches there."""

from enum import StrEnum
from typing import Literal

import msgspec

from osaurusd.wire.admin import ModelInfo
from osaurusd.wire.errors import ErrorBody

WEIGHTS_SHARE = 0.93
"""Share of the memory budget that weights may take in a model that fits; the rest is for context."""


class PullRoute(StrEnum):
    """Paths of the admin API."""

    PULLS = "/v0/pulls"
    WATCH = "/v0/pulls/watch"
    CANCEL = "/v0/pulls/cancel"
    SEARCH = "/v0/search"


class PullState(StrEnum):
    """State of a pull. A `failed` or `cancelled` pull resumes when it is requested again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PullStage(StrEnum):
    """Stage of a running pull: fetch metadata, download, verify checksums, move the files into the cache."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PLACING = "placing"


class PullInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A pull.

    Attributes:
        added: when it was requested, in Unix seconds.
        done, total: downloaded bytes and size of all files; `total` is 0 until the hub reports it.
        hashed, to_hash: bytes verified in this run, and bytes to verify.
        bytes_per_second: recent speed.
        seconds_left: estimate from the recent speed.
        note: what delays it at the moment, such as a hub that does not respond.
    """

    id: str
    repo: str
    revision: str
    name: str
    state: PullState
    added: int = 0
    stage: PullStage | None = None
    done: int = 0
    total: int = 0
    hashed: int = 0
    to_hash: int = 0
    bytes_per_second: float = 0
    seconds_left: float | None = None
    commit: str | None = None
    note: str | None = None
    error: ErrorBody | None = None


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Download `model`: an API name, an alias, `ORG/REPO` or its URL, each optionally followed by `@REVISION`.

    `token` is used for this pull only and never stored. Without it, the stored Hugging Face token is used.
    """

    model: str
    token: str | None = None


class PullWatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Follow the pulls with these ids until all have finished."""

    pulls: list[str]


class PullCancel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cancel a pull by its id or by any name of its model."""

    pull: str


class PullProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    pull: PullInfo


class PullDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The pull succeeded; the model can be served."""

    pull: PullInfo
    model: ModelInfo


class PullEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="ended"):
    """The pull failed with `pull.error`, or was cancelled. Downloaded data is kept."""

    pull: PullInfo


PullEvent = PullProgress | PullDone | PullEnded


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Search the hub for models for a task that match `words`, by `author` or, if null, by any author."""

    words: str
    task: Literal["generate", "embed", "rerank"] = "generate"
    author: str | None = "mlx-community"
    limit: int = 20
    token: str | None = None


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the hub.

    Attributes:
        bytes: size of the weights, if the hub reports it.
        fits: whether the weights fit into the memory budget.
        state: state of the model on this machine, or `not downloaded`.
        images: what becomes of images, for a model that the hub lists as one for images: `yes` if it accepts them,
            `no` if it only serves text, and `unsupported` if it cannot be served.
    """

    repo: str
    name: str
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    fits: bool | None = None
    gated: bool = False
    state: str = "not downloaded"
    images: Literal["yes", "no", "unsupported"] | None = None
