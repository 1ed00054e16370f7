"""The admin API's types for downloads from the hub and for searching it."""

from enum import StrEnum

import msgspec

from osaurusd.wire.admin import ModelInfo
from osaurusd.wire.errors import ErrorBody


class PullRoute(StrEnum):
    """Paths of the admin API."""

    PULLS = "/v0/pulls"
    WATCH = "/v0/pulls/watch"
    CANCEL = "/v0/pulls/cancel"
    SEARCH = "/v0/search"


class PullState(StrEnum):
    """Where a pull is in its life. What `failed` or was `cancelled` goes on where it was when it is asked for again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PullStage(StrEnum):
    """What a running pull does: ask the hub, receive, hash what was received, put it into the cache."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PLACING = "placing"


class PullInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One pull. `done` of `total` bytes of its files are here, and `hashed` of `to_hash` are verified in this run.

    `total` is 0 until the hub has said. `bytes_per_second` is what came lately; `seconds_left` follows from it.
    `added` is when it was asked for, in unix seconds. `note` is what holds it up at the moment, such as a hub that does
    not answer.
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
    """Download `model`: an API name, an alias, or `ORG/REPO`, each with `@REVISION` behind it if not `main` is meant.

    `token` is for this pull alone and is never written down; without it the hub's stored token is used.
    """

    model: str
    token: str | None = None


class PullWatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Follow the pulls with these ids until all have ended."""

    pulls: list[str]


class PullCancel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cancel a pull by its id, or by any name of its model."""

    pull: str


class PullProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    pull: PullInfo


class PullDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """A pull is through; the model can be served."""

    pull: PullInfo
    model: ModelInfo


class PullEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="ended"):
    """A pull has failed, for the `error` in it, or was cancelled; what it has is kept."""

    pull: PullInfo


PullEvent = PullProgress | PullDone | PullEnded


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask the hub for MLX models with these `words`; `author` null means anybody's."""

    words: str
    author: str | None = "mlx-community"
    limit: int = 20
    token: str | None = None


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the hub. `bytes` is the size of its weights where the hub tells; `fits` whether they fit into memory.

    `state` is that of the model on this machine, `not downloaded` if it is not here.
    """

    repo: str
    name: str
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    fits: bool | None = None
    gated: bool = False
    state: str = "not downloaded"
