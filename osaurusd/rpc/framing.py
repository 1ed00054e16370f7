"""Framing: length-prefixed frames over a socketpair.

A frame is a 4-byte big-endian length followed by that many bytes of msgspec JSON. End of file means that the peer has
exited, in both directions.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from osaurusd.rpc.messages import Frame

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024

T = TypeVar("T")


class FrameError(Exception):
    """The peer sent bytes that are not a frame of this protocol; the connection is unusable."""


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
        self._read = bytearray()

    async def read(self) -> T | None:
        """The next frame, or None once the peer has closed or died, even in the middle of a frame.

        Raises:
            FrameError: the bytes are no frame of this direction.
        """
        while (body := self._take()) is None:
            try:
                # As much as there is: what one step of a worker produced comes in one piece.
                more = await self._stream.read(_READ_BYTES)
            except ConnectionError:
                return None
            if not more:
                return None
            self._read += more
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame could not be read: {error}") from error

    def _take(self) -> bytes | None:
        """The first frame's body, if all of it has been read."""
        if len(self._read) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._read) < end:
            return None
        body = bytes(self._read[_LENGTH.size : end])
        del self._read[:end]
        return body


async def connect(fd: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over this end of a socketpair; takes the descriptor over."""
    return await asyncio.open_connection(sock=socket.socket(fileno=fd))
