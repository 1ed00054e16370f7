"""A request whose body is read within limits of size, time and memory."""

import asyncio
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage

from osaurusd.errors import MalformedRequest, RequestTimeout, RequestTooLarge
from osaurusd.http import inflate
from osaurusd.http.limits import FAULT, GATE, HELD
from osaurusd.http.refusals import CONTINUE

# Enough that a large body is not stopped and started again for every part of it.
READ_BYTES = 1024 * 1024


class Request(web.Request):
    """aiohttp's request, but for how its body is read.

    `Expect: 100-continue` is answered when the body is asked for, hence after everybody who may refuse the request. It
    is taken out of the headers, for aiohttp answers it before that.
    """

    ATTRS = web.Request.ATTRS | frozenset(["_expects_continue"])

    def __init__(self, message: RawRequestMessage, *args: Any, **options: Any) -> None:
        expected = message.headers.get(hdrs.EXPECT)
        if expected is not None:
            headers = message.headers.copy()
            del headers[hdrs.EXPECT]
            message = message._replace(headers=type(message.headers)(headers))
        super().__init__(message, *args, **options)
        self._expects_continue = expected is not None and expected.lower() == CONTINUE

    async def read(self) -> bytes:
        """The whole body, made plain.

        Raises:
            RequestTooLarge: it is larger than allowed, be it as sent or made plain.
            RequestTimeout: it comes too slowly.
            MalformedRequest: it is not what its headers say.
            UnsupportedEncoding: its encoding is not supported.
            TooManyRequests: the bodies of others take the room.
        """
        if self._read_bytes is None:
            self._read_bytes = await self._receive()
        return self._read_bytes

    @property
    def is_received(self) -> bool:
        """Whether the request has arrived as a whole."""
        return self.content.is_eof() and self.content.exception() is None

    async def _receive(self) -> bytes:
        inflater = inflate.inflater(self.headers)
        if (self.content_length or 0) > self._client_max_size:
            raise self._too_large()
        self._go_on()
        self.content.set_read_chunk_size(READ_BYTES)
        body = bytearray()
        sent = 0
        arrival = _Arrival(self)
        while chunk := await arrival.next():
            sent += len(chunk)
            if sent > self._client_max_size:
                raise self._too_large()
            if inflater is None:
                self._take(body, chunk)
                continue
            for piece in inflater.feed(chunk):
                self._take(body, piece)
                # Much may come of little: others have their turn in between.
                await asyncio.sleep(0)
        if inflater is not None:
            inflater.finish()
        return bytes(body)

    def _take(self, body: bytearray, piece: bytes) -> None:
        if len(body) + len(piece) > self._client_max_size:
            raise self._too_large()
        self[HELD] = self.get(HELD, 0) + len(piece)
        self.app[GATE].hold(len(piece))
        body += piece

    def _go_on(self) -> None:
        """Tell a client that waits for it to send the body."""
        if self._expects_continue and self.version == HttpVersion11 and self.transport and not self.content.is_eof():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_continue = False

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the request body is larger than the {self._client_max_size} bytes that `server.max_body_bytes` allows"
        )


async def close_unfinished(request: web.Request, response: web.StreamResponse) -> None:
    """Close after an answer that comes before its request has, or to one that others may read otherwise.

    Where the next request would begin is not known then.
    """
    if FAULT in request or (isinstance(request, Request) and not request.is_received):
        response.force_close()
        # What keeping the connection depends on has been looked at before this is called.
        response.headers[hdrs.CONNECTION] = "close"


class _Arrival:
    """A body as it comes in, in time."""

    def __init__(self, request: Request) -> None:
        limits = request.app[GATE].limits
        self._content = request.content
        self._stall_seconds, self._seconds = limits.body_stall_seconds, limits.body_seconds
        self._end = asyncio.get_running_loop().time() + limits.body_seconds

    async def next(self) -> bytes:
        """What has come, at least a byte; nothing at the end."""
        if self._content.is_eof() and self._content.exception() is None:
            return await self._content.readany()
        left = self._end - asyncio.get_running_loop().time()
        if left <= 0:
            raise RequestTimeout(f"the body was not there after `limits.body_seconds`, {self._seconds:g} s")
        try:
            async with asyncio.timeout(min(left, self._stall_seconds)):
                return await self._content.readany()
        except web.RequestPayloadError as error:
            raise MalformedRequest(f"the body could not be read: {error}") from error
        except TimeoutError as error:
            if left < self._stall_seconds:
                raise RequestTimeout(
                    f"the body was not there after `limits.body_seconds`, {self._seconds:g} s"
                ) from error
            raise RequestTimeout(
                f"nothing more of the body came for `limits.body_stall_seconds`, {self._stall_seconds:g} s"
            ) from error
