"""Frames between the daemon and its child processes: a closed union of messages each way, and their framing.

A frame is a 4-byte big-endian length followed by that many bytes of msgspec JSON. Both ends of the socketpair import
only this module, so a message that is not here does not exist. End of file is the death notice in both directions.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Generic, Literal, TypeVar

import msgspec

from osaurusd.wire.admin import FileState
from osaurusd.wire.errors import ErrorCode

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")

FinishReason = Literal["stop", "length"]

T = TypeVar("T")


class FrameError(Exception):
    """The peer sent bytes that are no frame of this protocol; the connection is of no further use."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One chat turn, its content already reduced to text."""

    role: str
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens; every default has been applied by the time this is made."""

    temperature: float
    top_p: float
    seed: int | None = None


# Daemon to worker


class Load(Frame, frozen=True, tag="load"):
    """Load the model in the folder `path`. Limits are in bytes; None leaves MLX's own."""

    path: str
    context_length: int | None = None
    dequantize: Literal["auto", "always", "never"] = "auto"
    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    wired_limit_bytes: int | None = None


class Generate(Frame, frozen=True, tag="generate"):
    """Answer `messages`. `max_tokens` None means: until the context is full."""

    id: int
    messages: list[Message]
    sampling: Sampling
    max_tokens: int | None = None
    stop: list[str] = []


class Cancel(Frame, frozen=True, tag="cancel"):
    """Drop request `id` at the next step; unknown or finished ids are ignored."""

    id: int


class Shutdown(Frame, frozen=True, tag="shutdown"):
    """Drop everything and exit 0."""


# Worker to daemon


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame: the version of the package that the worker runs."""

    version: str


class Loaded(Frame, frozen=True, tag="loaded"):
    """The model is ready. `dtype` is what the weights are computed in; `notes` are for the log."""

    device: str
    dtype: str
    memory_bytes: int
    batched: bool


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    message: str


class Delta(Frame, frozen=True, tag="delta"):
    """New text of request `id`; the first one of a request may be empty and means: the prompt is processed."""

    id: int
    text: str


class Done(Frame, frozen=True, tag="done"):
    """Request `id` is complete. Counts are tokens; the end token is not counted as a completion token."""

    id: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class Failed(Frame, frozen=True, tag="failed"):
    """Request `id` failed; no further frame of it follows."""

    id: int
    code: ErrorCode
    message: str
    param: str | None = None


class Stats(Frame, frozen=True, tag="stats"):
    """Bytes that MLX holds for arrays and keeps in its own cache of freed buffers."""

    active_bytes: int
    cache_bytes: int


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


ToWorker = Load | Generate | Cancel | Shutdown
FromWorker = Hello | Loaded | LoadFailed | Delta | Done | Failed | Stats
FromImporter = Progress | Imported | ImportFailure
FromStore = Deletion | Hashing | Hashed | StoreFailure

TO_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FROM_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
FROM_IMPORTER: msgspec.json.Decoder[FromImporter] = msgspec.json.Decoder(FromImporter)
FROM_STORE: msgspec.json.Decoder[FromStore] = msgspec.json.Decoder(FromStore)


def encode(frames: Iterable[Frame]) -> bytes:
    """All frames as one run of bytes, so that what one step produced travels in one write."""
    parts = bytearray()
    for frame in frames:
        body = msgspec.json.encode(frame)
        parts += _LENGTH.pack(len(body))
        parts += body
    return bytes(parts)


class FrameReader(Generic[T]):
    """Reads the frames of one direction's union from a stream.

    Args:
        stream: what the peer writes into.
        decoder: reads the union of frames that may come.
    """

    def __init__(self, stream: asyncio.StreamReader, decoder: msgspec.json.Decoder[T]) -> None:
        self._stream = stream
        self._decoder = decoder

    async def read(self) -> T | None:
        """The next frame, or None once the peer has closed or died, even in the middle of a frame.

        Raises:
            FrameError: the bytes are no frame of this direction.
        """
        try:
            (length,) = _LENGTH.unpack(await self._stream.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
            body = await self._stream.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame could not be read: {error}") from error


async def connect(fd: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over this end of a socketpair; takes the descriptor over."""
    return await asyncio.open_connection(sock=socket.socket(fileno=fd))
