"""Compressed bodies, made plain a little at a time, so that a small body that means a large one costs little."""

import zlib
from collections.abc import Iterator

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from osaurusd.errors import MalformedRequest, UnsupportedEncoding

SUPPORTED = "gzip, deflate"

STEP_BYTES = 256 * 1024
"""What comes out at once, at the most."""

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS

# RFC 1950: the lower half of the first byte tells a zlib stream from a bare one, which some clients send.
_ZLIB_METHOD = 8


class Inflater:
    """Takes a compressed body in as it comes.

    Args:
        encoding: `gzip` or `deflate`.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_GZIP) if encoding == "gzip" else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes mean, in pieces of `STEP_BYTES` at the most, of which some may be empty.

        Raises:
            MalformedRequest: they are not of that encoding, or come after its end.
        """
        if self._stream is None:
            self._stream = zlib.decompressobj(_ZLIB if data[0] & 0x0F == _ZLIB_METHOD else _RAW)
        piece = None
        # All bytes may have been taken in when a piece is full, and yet mean more.
        while piece is None or data or len(piece) == STEP_BYTES:
            try:
                piece = self._stream.decompress(data, STEP_BYTES)
            except zlib.error as error:
                raise MalformedRequest(f"the body is no {self._encoding} stream: {error}") from error
            if self._stream.unused_data:
                raise MalformedRequest(f"the body has something after the end of its {self._encoding} stream")
            data = self._stream.unconsumed_tail
            yield piece

    def finish(self) -> None:
        """Raise MalformedRequest if the body breaks off."""
        if self._stream is not None and not self._stream.eof:
            raise MalformedRequest(f"the body breaks off before the end of its {self._encoding} stream")


def inflater(headers: CIMultiDictProxy[str]) -> Inflater | None:
    """What a body with these headers needs; None if it is as it is.

    Raises:
        UnsupportedEncoding: nothing here can read it.
    """
    encodings = [
        encoding
        for value in headers.getall(hdrs.CONTENT_ENCODING, [])
        for part in value.split(",")
        if (encoding := part.strip().lower()) not in ("", "identity")
    ]
    match encodings:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return Inflater("gzip")
        case ["deflate"]:
            return Inflater("deflate")
    raise UnsupportedEncoding(f"the body's `Content-Encoding` is none of those that are understood: {SUPPORTED}")
