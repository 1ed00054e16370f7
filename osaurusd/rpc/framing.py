"""Frames over a socketpair: a typed JSON header with optional binary blobs.

    u32 header length | u32 blob count | u32 length of each blob | header | blobs

All integers are big-endian. The header is a message of the direction's union; blobs (encoded images, embeddings) travel
beside it, and messages refer to them by index. End of file means that the peer has exited, in both directions.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio

MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_BLOBS = 4096
MAX_BLOB_BYTES = 256 * 1024 * 1024
"""Limit of all blobs of a frame together."""

_PREFIX = struct.Struct(">II")
_PLAN_HEADER = b'{"type":"plan"'
_READ_BYTES = 256 * 1024
_ENCODER = msgspec.json.Encoder()

T = TypeVar("T")


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the parts of messages."""


class FrameError(Exception):
    """The peer sent bytes that are not a frame of this protocol; the connection is unusable."""


class FrameWithBlobs(msgspec.Struct, Generic[T], frozen=True):
    """A frame and its blobs."""

    frame: T
    blobs: Sequence[bytes] = ()


Outgoing = Frame | FrameWithBlobs[Frame]
"""A frame to send."""


def encode(frames: Iterable[Outgoing]) -> bytes:
    """Encode frames into one byte string, so that the output of one decode step takes one write.

    Raises:
        ValueError: the blobs of a frame exceed `MAX_BLOBS` or `MAX_BLOB_BYTES`.
    """
    parts: list[bytes] = []
    for frame in frames:
        if isinstance(frame, FrameWithBlobs):
            parts.append(encode_with_blobs(frame.frame, frame.blobs))
            continue
        header = _ENCODER.encode(frame)
        parts += _PREFIX.pack(len(header), 0), header
    return b"".join(parts)


def encode_with_blobs(frame: Frame, blobs: Sequence[bytes]) -> bytes:
    """Encode one frame with its blobs; raises what `encode_head` raises."""
    return b"".join((encode_head(frame, blobs), *blobs))


def encode_head(frame: Frame, blobs: Sequence[bytes]) -> bytes:
    """Encode what precedes the blobs of a frame.

    Raises:
        ValueError: the blobs exceed `MAX_BLOBS` or `MAX_BLOB_BYTES`.
    """
    header = _ENCODER.encode(frame)
    lengths = [len(blob) for blob in blobs]
    if len(blobs) > MAX_BLOBS or sum(lengths) > MAX_BLOB_BYTES:
        raise ValueError(f"a frame cannot carry {len(blobs)} blobs with {sum(lengths)} bytes")
    prefix = _PREFIX.pack(len(header), len(blobs)) + struct.pack(f">{len(blobs)}I", *lengths)
    return prefix + header


class FrameDecoder(Generic[T]):
    """Splits a byte stream into frames; does no I/O.

    Args:
        decoder: decodes the union of messages of this direction.
    """

    def __init__(self, decoder: msgspec.json.Decoder[T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> FrameWithBlobs[T] | None:
        """Return the next complete frame with its blobs, or None if more bytes are needed.

        Raises:
            FrameError: the bytes are not a frame of this direction.
        """
        frame = self.next_any()
        if isinstance(frame, FrameWithBlobs) or frame is None:
            return frame
        return FrameWithBlobs(frame)

    def next_frame(self) -> T | None:
        """Return the next complete frame of a connection that carries no blobs, or None if more bytes are needed.

        Raises:
            FrameError: the bytes are not a frame of this direction, or the frame has blobs.
        """
        frame = self.next_any()
        if isinstance(frame, FrameWithBlobs):
            raise FrameError(f"a {type(frame.frame).__name__} frame has {len(frame.blobs)} blobs; expected none")
        return frame

    def next_any(self) -> T | FrameWithBlobs[T] | None:
        """Return the next complete frame, wrapped only if it has blobs, or None if more bytes are needed.

        Most frames are text deltas without blobs, and speed matters.

        Raises:
            FrameError: the bytes are not a frame of this direction.
        """
        layout = _parse_layout(self._buffer, self._start)
        if layout is None or len(self._buffer) < layout.end:
            return None
        self._start = layout.end
        frame = self._decode_header(layout.header, layout.blobs)
        return FrameWithBlobs(frame, self._take_blobs(layout)) if layout.blob_lengths else frame

    def _take_blobs(self, layout: "_Layout") -> list[bytes]:
        position = layout.blobs
        blobs = []
        with memoryview(self._buffer) as view:
            for length in layout.blob_lengths:
                blobs.append(bytes(view[position : position + length]))
                position += length
        # Otherwise the copies in the buffer would stay until more is received.
        del self._buffer[: self._start]
        self._start = 0
        return blobs

    def _decode_header(self, start: int, end: int) -> T:
        try:
            return self._decoder.decode(self._buffer[start:end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame header is invalid: {error}") from error


class _Layout(NamedTuple):
    """Where the parts of a frame are. The data may end before them.

    Attributes:
        header: position of the header.
        blobs: position of the first blob, behind the header.
        end: position behind the frame.
    """

    header: int
    blobs: int
    end: int
    blob_lengths: tuple[int, ...]


def _parse_layout(data: bytes | bytearray, start: int) -> _Layout | None:
    """Parse what precedes the header of a frame; None if more bytes are needed.

    Raises:
        FrameError: the sizes exceed the limits.
    """
    table = start + _PREFIX.size
    if len(data) < table:
        return None
    header_bytes, blob_count = _PREFIX.unpack_from(data, start)
    if header_bytes > MAX_HEADER_BYTES:
        raise FrameError(f"a frame header of {header_bytes} bytes exceeds the limit of {MAX_HEADER_BYTES}")
    if not blob_count:
        return _Layout(table, table + header_bytes, table + header_bytes, ())
    if blob_count > MAX_BLOBS:
        raise FrameError(f"a frame with {blob_count} blobs exceeds the limit of {MAX_BLOBS}")
    header = table + 4 * blob_count
    if len(data) < header:
        return None
    lengths = struct.unpack_from(f">{blob_count}I", data, table)
    blob_bytes = sum(lengths)
    if blob_bytes > MAX_BLOB_BYTES:
        raise FrameError(f"blobs of {blob_bytes} bytes exceed the limit of {MAX_BLOB_BYTES}")
    blobs = header + header_bytes
    return _Layout(header, blobs, blobs + blob_bytes, lengths)


def count_plans(data: bytes) -> int:
    """Return how many frames the data consists of.

    Raises:
        FrameError: it is not complete frames, or one of them is not a `Plan`.
    """
    position = count = 0
    while position < len(data):
        layout = _parse_layout(data, position)
        if layout is None or layout.end > len(data):
            raise FrameError("a message has an incomplete frame")
        if not data.startswith(_PLAN_HEADER, layout.header):
            raise FrameError("a message has a frame that is not a plan")
        position, count = layout.end, count + 1
    return count


class PlanDiverter:
    """Takes the `Plan` frames out of the stream of a worker, without decoding them.

    Args:
        divert: gets each of them.
    """

    def __init__(self, divert: Callable[[bytes], None]) -> None:
        self._divert = divert
        self._buffer = bytearray()

    def __call__(self, data: bytes) -> bytes:
        """Return the complete other frames of what has arrived.

        Raises:
            FrameError: the bytes are not frames.
        """
        self._buffer += data
        others = bytearray()
        position = 0
        while (layout := _parse_layout(self._buffer, position)) is not None and layout.end <= len(self._buffer):
            frame = self._buffer[position : layout.end]
            if self._buffer.startswith(_PLAN_HEADER, layout.header):
                self._divert(bytes(frame))
            else:
                others += frame
            position = layout.end
        del self._buffer[:position]
        return bytes(others)


class FrameReader(Generic[T]):
    """Reads the frames of one direction from a stream.

    Args:
        stream: the peer's bytes.
        decoder: decodes the union of messages of this direction.

    Attributes:
        filter: applied to what arrives before it is decoded; returns complete frames.
    """

    def __init__(self, stream: "asyncio.StreamReader", decoder: msgspec.json.Decoder[T]) -> None:
        self.filter: Callable[[bytes], bytes] | None = None
        self._stream = stream
        self._frames = FrameDecoder(decoder)

    async def read(self) -> T | None:
        """Return the next frame, or None once the peer has closed its end, even in the middle of a frame.

        Raises:
            FrameError: the bytes are not a frame of this direction, or the frame has blobs.
        """
        while (frame := self._frames.next_frame()) is None:
            if not await self._fill():
                return None
        return frame

    async def read_any(self) -> T | FrameWithBlobs[T] | None:
        """Return the next frame, wrapped only if it has blobs, or None once the peer has closed its end.

        Raises:
            FrameError: the bytes are not a frame of this direction.
        """
        while (frame := self._frames.next_any()) is None:
            if not await self._fill():
                return None
        return frame

    async def receive(self) -> FrameWithBlobs[T] | None:
        """Return the next frame with its blobs, or None once the peer has closed its end.

        Raises:
            FrameError: the bytes are not a frame of this direction.
        """
        while (received := self._frames.next()) is None:
            if not await self._fill():
                return None
        return received

    async def _fill(self) -> bool:
        """Read what has arrived: the frames of one decode step usually come in one piece. False at end of file."""
        try:
            data = await self._stream.read(_READ_BYTES)
        except ConnectionError:
            return False
        self._frames.feed(data if self.filter is None else self.filter(data))
        return bool(data)


async def connect(fd: int) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
    """Open streams over this end of a socketpair; they own the descriptor."""
    import asyncio  # noqa: PLC0415  a third of the start-up time of a process that only needs frames

    return await asyncio.open_connection(sock=socket.socket(fileno=fd))
