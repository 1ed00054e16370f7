"""WebSockets (RFC 6455): connections over which clients send messages, under the limits of requests."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from aiohttp import WSCloseCode, WSMsgType, hdrs, web
from aiohttp.log import ws_logger

from osaurusd.http.connection import connection_of
from osaurusd.http.request import CONTEXT

PING_SECONDS = 30.0
"""How often a ping is sent while nothing arrives, for proxies. Some clients only answer while they receive."""

CLOSE_SECONDS = 2.0
"""How long the server waits for the client to confirm that the connection is closed."""

MAX_REASON_BYTES = 123
MIN_WAIT_SECONDS = 0.001
IDLE_KEY = "limits.websocket_idle_seconds"

_OPEN = web.AppKey("OPEN_WEBSOCKETS", set["WebSocket"])


def enable_websockets(app: web.Application) -> None:
    """Let an application accept WebSockets, which are closed when it shuts down."""
    app[_OPEN] = set()
    # It would log the subprotocols that clients offer, in which browsers send API keys.
    ws_logger.setLevel(logging.ERROR)
    app.on_shutdown.append(_close_all)


async def _close_all(app: web.Application) -> None:
    sockets = [*app[_OPEN]]
    await asyncio.gather(*(socket.close(WSCloseCode.GOING_AWAY, "the server is shutting down") for socket in sockets))


def is_upgrade(request: web.Request) -> bool:
    """Whether a request asks for a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


class WebSocket:
    """One connection.

    Attributes:
        response: what the request handler returns once the connection is closed.
    """

    def __init__(self, request: web.Request) -> None:
        context = request[CONTEXT]
        self.response = web.WebSocketResponse(
            timeout=CLOSE_SECONDS,
            # Small messages over a fast network: compression would only cost time.
            compress=False,
            # aiohttp rejects messages of this size.
            max_msg_size=context.config.server.max_body_bytes + 1,
            decode_text=False,
        )
        self._admission = context.admission
        self._open = request.app[_OPEN]
        self._connection = connection_of(request)
        self._request = request
        self._busy = 0
        self._loop = asyncio.get_running_loop()
        self._idle_since = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether the connection can be closed without harm."""
        return self._busy == 0

    def hold(self) -> contextlib.ExitStack:
        """Mark the connection as in use until the result is closed."""
        self._busy += 1
        held = contextlib.ExitStack()
        held.callback(self._release)
        return held

    def _release(self) -> None:
        self._busy -= 1
        self._idle_since = self._loop.time()
        if self._connection is not None:
            self._connection.idle_since = self._idle_since

    async def messages(self) -> AsyncGenerator[bytes]:
        """Accept the connection, and yield the text messages of the client until one side closes it.

        A message that is larger than a request body may be, or is not text, closes the connection.
        """
        await self.response.prepare(self._request)
        if self._connection is not None:
            self._connection.upgrade(self)
        self._open.add(self)
        try:
            while (message := await self._receive()) is not None:
                yield message
                del message
        finally:
            self._open.discard(self)

    async def send(self, message: bytes) -> None:
        """Send a text message.

        Raises:
            ConnectionError: the connection is closed.
        """
        await self.response.send_frame(message, WSMsgType.TEXT)

    async def close(self, code: int, reason: str) -> None:
        """Close the connection and tell the client why."""
        await self.response.close(code=code, message=reason.encode()[:MAX_REASON_BYTES])

    async def _receive(self) -> bytes | None:
        """Return the next message, or None once the connection is closed."""
        while True:
            idle_seconds = self._admission.limits.websocket_idle_seconds
            remaining = max(MIN_WAIT_SECONDS, self._idle_since + idle_seconds - self._loop.time())
            try:
                message = await self.response.receive(min(PING_SECONDS, idle_seconds if self._busy else remaining))
            except TimeoutError:
                if self.is_idle and self._loop.time() >= self._idle_since + idle_seconds:
                    await self.close(WSCloseCode.GOING_AWAY, f"idle for {idle_seconds:g} s (`{IDLE_KEY}`)")
                    return None
                with contextlib.suppress(ConnectionError):
                    await self.response.ping()
                continue
            if message.type is WSMsgType.TEXT:
                self._idle_since = self._loop.time()
                return bytes(message.data)
            if message.type is WSMsgType.BINARY:
                await self.close(WSCloseCode.UNSUPPORTED_DATA, "messages must be text, not binary")
            return None
