"""Serving an application on listening sockets, with limits on its connections."""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from osaurusd.config import Config, Limits
from osaurusd.errors import OsaurusError
from osaurusd.http.connection import ConnectionGuard
from osaurusd.http.errors import error_headers, status_of
from osaurusd.http.listen import BACKLOG
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.routes import ErrorResponse
from osaurusd.http.tls import Tls
from osaurusd.log import get_logger

log = get_logger(__name__)

RESERVED_DESCRIPTORS = 96
"""File descriptors kept for workers, downloads, logs, state files and connections that are being closed."""

MAX_LINGERING = 32
"""Rejected connections that may stay open until their clients have read the error; each takes a file descriptor."""

SHUTDOWN_SECONDS = 2.0
"""How long `HttpServer.close` waits for handlers; only a client that does not read holds one up that long."""

BODY_LINGER_SECONDS = 2.0
"""How long an unread request body is discarded after the response, so that the client can read that."""

TLS_HANDSHAKE_SECONDS = 10.0
TLS_SHUTDOWN_SECONDS = 2.0

CLOSE_SECONDS = 3.0
"""How long `HttpServer.close` waits until the sockets of connections are closed."""

# The guard closes idle connections, by a limit that can be reloaded.
_NO_KEEPALIVE_TIMEOUT = 10.0**9

# The largest value of `limits.max_head_bytes`.
_PARSER_LIMIT = 16 * 1024 * 1024


class HttpServer:
    """Serves one application.

    Args:
        app: from `create_app`.
        config: returns the configuration in force.
        error_response: renders errors of connections that have no request yet.
        metrics: counts those errors.
    """

    def __init__(
        self,
        app: web.Application,
        config: Callable[[], Config],
        error_response: ErrorResponse,
        metrics: HttpMetrics | None = None,
    ) -> None:
        self._config = config
        self._error_response = error_response
        self._metrics = metrics
        self._runner = web.AppRunner(
            app, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS, **_protocol_options()
        )
        self._listeners: list[asyncio.Server] = []
        self._connections: set[ConnectionGuard] = set()
        self._rejected: set[ConnectionGuard] = set()
        self._evicted: set[ConnectionGuard] = set()
        self._connection_lost = asyncio.Event()
        self.closed = False

    @property
    def limits(self) -> Limits:
        return self._config().limits

    @property
    def connection_count(self) -> int:
        """Open connections, including rejected ones that linger, and those that are being closed to make room."""
        return len(self._open_connections())

    async def start(self, sockets: Sequence[socket.socket], tls: Tls | None = None) -> None:
        """Accept connections on sockets that listen already; `close` closes them."""
        await self._runner.setup()
        options: dict[str, Any] = {}
        if tls is not None:
            options = {
                "ssl": tls.context,
                "ssl_handshake_timeout": TLS_HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS,
            }
        loop = asyncio.get_running_loop()
        for sock in sockets:
            self._listeners.append(await loop.create_server(self.new_connection, sock=sock, backlog=BACKLOG, **options))

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections continue."""
        for listener in self._listeners:
            listener.close()

    async def close(self) -> None:
        """Close the listening sockets and all connections, and wait until that is done.

        TLS handshakes continue; their connections are closed afterwards.
        """
        self.stop_accepting()
        self.closed = True
        await self._runner.cleanup()
        for connection in self._open_connections():
            connection.abort()
        # aiohttp may have closed a TLS connection twice, which then cannot be aborted and waits for the client.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._wait_until_closed()

    def new_connection(self) -> ConnectionGuard:
        """Return the protocol of a new connection."""
        assert self._runner.server is not None
        return ConnectionGuard(self, self._runner.server)

    def admit(self, connection: ConnectionGuard) -> bool:
        """Count a new connection. At the limit, the connection that was idle longest is closed to make room.

        Returns:
            False if none is idle.
        """
        if len(self._connections) >= max_connections(self.limits):
            idle = [other for other in self._connections if other.is_idle]
            if not idle:
                return False
            oldest = min(idle, key=lambda other: other.idle_since)
            self._connections.discard(oldest)
            self._evicted.add(oldest)
            oldest.close_idle()
        self._connections.add(connection)
        return True

    def may_linger(self, connection: ConnectionGuard) -> bool:
        """Whether a rejected connection may stay open until its client has read the error."""
        if len(self._rejected) >= MAX_LINGERING:
            return False
        self._rejected.add(connection)
        return True

    def forget(self, connection: ConnectionGuard) -> None:
        self._connections.discard(connection)
        self._rejected.discard(connection)
        self._evicted.discard(connection)
        self._connection_lost.set()

    def render_rejection(self, error: OsaurusError) -> web.Response:
        """Render an error of a connection that has no request yet; log and count it."""
        status = status_of(error)
        log.info("connection rejected", code=str(error.code), status=status, reason=error.message)
        if self._metrics is not None:
            self._metrics.count("other", status)
        response = self._error_response(error)
        response.headers.update(error_headers(error))
        return response

    def _open_connections(self) -> list[ConnectionGuard]:
        return [*self._connections, *self._rejected, *self._evicted]

    async def _wait_until_closed(self) -> None:
        while self._open_connections():
            self._connection_lost.clear()
            await self._connection_lost.wait()


def max_connections(limits: Limits) -> int:
    """Return how many connections a listener may have, given the process's file descriptors and two listeners."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return limits.max_connections
    return min(limits.max_connections, max(1, (descriptors - RESERVED_DESCRIPTORS) // 2))


def _protocol_options() -> dict[str, Any]:
    logger = logging.Logger("aiohttp.server")
    logger.addHandler(_ProtocolLogHandler())
    return {
        "access_log": None,
        "handler_cancellation": True,
        "keepalive_timeout": _NO_KEEPALIVE_TIMEOUT,
        "lingering_time": BODY_LINGER_SECONDS,
        "auto_decompress": False,
        "logger": logger,
        # The connection guard and `check_head` enforce the configured limits, which can be reloaded, and respond in the
        # API's error format.
        "max_line_size": _PARSER_LIMIT,
        "max_field_size": _PARSER_LIMIT,
        "max_headers": _PARSER_LIMIT,
    }


class _ProtocolLogHandler(logging.Handler):
    """Logs what aiohttp's protocol reports: malformed requests in one line, anything else with its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            # The message quotes the request, which may contain secrets.
            log.info("malformed request", reason=type(error).__name__)
        elif record.levelno >= logging.WARNING and not isinstance(error, ConnectionError):
            log.error("unexpected error", reason=record.getMessage(), exc_info=record.exc_info)
