"""Messages from the download process to the daemon."""

import msgspec

from osaurusd.rpc.framing import Frame, Part
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage


class Progress(Frame, frozen=True, tag="progress"):
    """The progress of a pull. For the fields see `wire.pulls.PullInfo`."""

    stage: PullStage
    done: int = 0
    total: int = 0
    hashed: int = 0
    to_hash: int = 0
    bytes_per_second: float = 0
    commit: str | None = None
    note: str | None = None


class Pulled(Frame, frozen=True, tag="pulled"):
    """The model is installed in the cache. `bytes` is the size of its files."""

    commit: str
    bytes: int


class HubModel(Part, frozen=True):
    """A model on the hub.

    Attributes:
        bytes: size of the weights.
        architecture: its `model_type`.
        takes_images: whether the hub lists it as a model for images.
    """

    repo: str
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    gated: bool = False
    architecture: str | None = None
    takes_images: bool = False


class SearchResult(Frame, frozen=True, tag="search_result"):
    models: list[HubModel]


class Failure(Frame, frozen=True, tag="failure"):
    code: ErrorCode
    message: str


Message = Progress | Pulled | SearchResult | Failure

DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
