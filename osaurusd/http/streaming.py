"""Streamed responses: Server-Sent Events and newline-delimited JSON.

The first item is awaited before the headers are sent, so that an error up to that point has its own status. If that
takes longer than `server.first_byte_seconds`, the headers are sent anyway. Later errors become the last item.

Proxies and clients close connections on which nothing arrives: nginx after 60 s, Node's `fetch` after 300 s. Once a
client closes its side of the connection, keep-alive data is sent at once, which fails if the client is gone.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

import msgspec
from aiohttp import HttpVersion11, hdrs, web

from osaurusd.errors import OsaurusError
from osaurusd.http import half_close
from osaurusd.http.connection import connection_of
from osaurusd.http.errors import as_osaurus_error
from osaurusd.http.request import CONTEXT

T = TypeVar("T")

SseEvent = bytes | tuple[str, bytes]
"""The data of an event, which must not contain a line break, or a pair of the event's name and its data."""

KEEP_ALIVE_SECONDS = 10.0
"""After this time without an event, a comment is sent; sooner if `server.first_byte_seconds` is less."""

HALF_CLOSED_CHECK_SECONDS = 1.0
"""How often a stream without headers checks whether they were sent, once the client has closed its side."""

_COMMENT = b": keep-alive\n\n"

# nginx would collect the response in its buffers.
_HEADERS = {hdrs.CACHE_CONTROL: "no-cache", "X-Accel-Buffering": "no"}


async def stream_sse(
    request: web.Request,
    events: AsyncGenerator[SseEvent],
    *,
    error_event: Callable[[OsaurusError], SseEvent],
    last_event: SseEvent | None = None,
) -> web.StreamResponse:
    """Send Server-Sent Events, and comments while there are none.

    Args:
        request: the request to answer.
        events: closed when the stream ends or the client disconnects.
        error_event: renders an error that occurs after the headers were sent; the stream ends with it.
        last_event: sent if the stream ends without an error.
    """
    response = web.StreamResponse(headers=_HEADERS)
    response.content_type = "text/event-stream"
    writer = _StreamWriter(request, response, keep_alive=lambda: _COMMENT)
    end = encode_sse(last_event) if last_event is not None else None
    return await _stream(writer, events, encode_sse, lambda error: encode_sse(error_event(error)), end)


async def stream_ndjson(
    request: web.Request,
    values: AsyncGenerator[T],
    *,
    error_value: Callable[[OsaurusError], object] | None = None,
    content_type: str = "application/x-ndjson",
    keep_alive_value: Callable[[], object] | None = None,
    headers_first: bool = False,
) -> web.StreamResponse:
    """Send one JSON document per line.

    Args:
        request: the request to answer.
        values: closed when the stream ends or the client disconnects.
        error_value: renders an error that occurs after the headers were sent; without it the connection is aborted.
        content_type: the media type of the response.
        keep_alive_value: makes a document without information, which is sent while there are no values.
        headers_first: send the headers before the first value, for streams that may have none for a long time.
    """
    response = web.StreamResponse(headers=_HEADERS)
    response.content_type = content_type
    keep_alive = None if keep_alive_value is None else lambda: _encode_line(keep_alive_value())
    writer = _StreamWriter(request, response, keep_alive)
    if headers_first:
        with contextlib.suppress(_DisconnectedError):
            await writer.write(None)
    encode_error = None if error_value is None else lambda error: _encode_line(error_value(error))
    return await _stream(writer, values, _encode_line, encode_error, None)


def encode_sse(event: SseEvent) -> bytes:
    """Encode one event as it is sent."""
    if isinstance(event, tuple):
        name, data = event
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"data: " + event + b"\n\n"


def _encode_line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


class _DisconnectedError(Exception):
    """The client closed the connection."""


class _StreamWriter:
    """Writes a streamed response, whose headers are sent with the first data or after `server.first_byte_seconds`."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, keep_alive: Callable[[], bytes] | None = None
    ) -> None:
        self.response = response
        self._request = request
        self._context = request[CONTEXT]
        self._keep_alive = keep_alive
        self._first_byte_seconds = self._context.config.server.first_byte_seconds
        self._written_at = self._context.started_at
        self._lock = asyncio.Lock()
        connection = connection_of(request)
        self._half_closed = asyncio.Event() if connection is None else connection.half_closed
        self._probe_seconds = half_close.FIRST_PROBE_SECONDS
        if request.version < HttpVersion11:
            # Without chunks, only the end of the connection marks the end of the stream.
            response.force_close()

    @property
    def started(self) -> bool:
        return self.response.prepared

    def limited(self, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Apply the request's deadline to the items."""
        deadline = self._context.deadline
        return items if deadline is None else deadline.items(items)

    async def write(self, data: bytes | None) -> None:
        """Send data, after the headers if those were not sent yet; None sends the headers only."""
        async with self._lock:
            try:
                if not self.response.prepared:
                    await self.response.prepare(self._request)
                if data:
                    await self.response.write(data)
            except ConnectionError as error:
                self._context.disconnected = True
                raise _DisconnectedError from error
        self._written_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.response.write_eof()

    @contextlib.asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """While the block runs, send the headers in time, and then keep-alive data after each quiet period."""
        task = asyncio.create_task(self._send_keep_alives())
        try:
            yield
        finally:
            task.cancel()

    async def _send_keep_alives(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(_DisconnectedError):
            while True:
                remaining = self._written_at + self._quiet_seconds() - loop.time()
                if remaining > 0:
                    await self._wait(remaining)
                elif self.started and self._keep_alive is None:
                    # Without keep-alive data, nothing shows whether the client is still there. It most likely is not.
                    self._abort()
                    return
                else:
                    await self._send_keep_alive()

    def _quiet_seconds(self) -> float:
        """Return after how long without output something is sent."""
        if not self.started:
            return self._first_byte_seconds or math.inf
        if self._half_closed.is_set():
            return 0 if self._keep_alive is None else self._probe_seconds
        if self._keep_alive is None or not self._first_byte_seconds:
            return math.inf
        return min(self._first_byte_seconds, KEEP_ALIVE_SECONDS)

    async def _wait(self, seconds: float) -> None:
        """Wait, but only until the client closes its side, or shortly if it has done so before the headers."""
        if self._half_closed.is_set():
            await asyncio.sleep(min(seconds, HALF_CLOSED_CHECK_SECONDS))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._half_closed.wait(), None if math.isinf(seconds) else seconds)

    async def _send_keep_alive(self) -> None:
        await self.write(None if self._keep_alive is None else self._keep_alive())
        if self._half_closed.is_set():
            self._probe_seconds = min(self._probe_seconds * half_close.PROBE_FACTOR, KEEP_ALIVE_SECONDS)

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


async def _stream(
    writer: _StreamWriter,
    items: AsyncGenerator[T],
    encode: Callable[[T], bytes],
    encode_error: Callable[[OsaurusError], bytes] | None,
    end: bytes | None,
) -> web.StreamResponse:
    # A client that disconnected needs no response; closing the items stops the work for it.
    limited = writer.limited(items)
    async with contextlib.aclosing(items), contextlib.aclosing(limited), writer.kept_alive():
        with contextlib.suppress(_DisconnectedError):
            try:
                async for item in limited:
                    await writer.write(encode(item))
            except _DisconnectedError:
                raise
            except Exception as error:
                if not writer.started or encode_error is None:
                    raise
                await writer.write(encode_error(as_osaurus_error(error)))
            else:
                await writer.write(end)
            await writer.close()
    return writer.response
