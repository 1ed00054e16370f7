"""Limits on one connection: time and size of a request's head, idle time, and a write timeout."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from aiohttp import StreamReader, hdrs, web

from osaurusd.config import Limits
from osaurusd.errors import OsaurusError, RequestTimeout, TooManyConnections
from osaurusd.http.half_close import HalfCloseProbe
from osaurusd.http.request import head_too_large
from osaurusd.log import get_logger

log = get_logger(__name__)

LINGER_SECONDS = 2.0
"""How long a rejected connection stays open for the client to read the response."""

MAX_PIPELINED_BYTES = 1024 * 1024
"""How much a client may send while its previous request is being served."""

WRITE_CHECKS = 8
"""How often per `limits.reader_stall_seconds` unsent data is checked for progress."""

HALF_CLOSED_IDLE_SECONDS = 0.05
"""How long a connection whose client sends nothing more stays open after a response, for a pipelined request."""

REACTION_ITERATIONS = 8
"""Iterations of the event loop within which the HTTP protocol reacts to what has arrived.

It responds to a malformed head, or starts a pipelined request. A time limit cannot tell: the daemon may be stopped
meanwhile, on a busy machine.
"""

_HEAD_END = b"\r\n\r\n"


class Connections(Protocol):
    """What a connection needs from the server that accepted it."""

    @property
    def limits(self) -> Limits: ...

    @property
    def closed(self) -> bool:
        """Whether the server is closed; a TLS handshake may end afterwards."""

    def admit(self, connection: "ConnectionGuard") -> bool:
        """Count a new connection, unless there are too many."""

    def may_linger(self, connection: "ConnectionGuard") -> bool:
        """Whether a connection that was not admitted may stay open until its client has read the response."""

    def forget(self, connection: "ConnectionGuard") -> None:
        """Stop counting a closed connection."""

    def render_rejection(self, error: OsaurusError) -> web.Response:
        """Render an error that is sent before there is a request."""


class Upgrade(Protocol):
    """What a connection needs from the protocol that it was switched to."""

    @property
    def is_idle(self) -> bool:
        """Whether the connection can be closed without harm."""


class ConnectionGuard(asyncio.Protocol):
    """Enforces limits on a connection, and passes everything else to the HTTP protocol that it wraps.

    Between requests the guard measures the next head: time from its first byte, and size. A middleware reports when a
    request starts and ends (`serve_request`). If a client pipelines requests, only the parser knows where a head ends;
    the guard then stops reading after `MAX_PIPELINED_BYTES` until the current request is done or the connection is
    idle for too long.

    Args:
        connections: the server's connections.
        make_protocol: makes aiohttp's protocol once the connection is admitted.

    Attributes:
        half_closed: set once the client has closed its side; it may still wait for a response.
    """

    def __init__(self, connections: Connections, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._connections = connections
        self._make_protocol = make_protocol
        self._limits = connections.limits
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.Handle | None = None
        self._write_timeout = WriteTimeout(self._limits.reader_stall_seconds)
        self._head = bytearray()
        self._head_complete = False
        self._serving = False
        self._body: StreamReader | None = None
        self._pipelines = False
        self._pipelined_bytes = 0
        self._lingering = False
        self.half_closed = asyncio.Event()
        self._probe: HalfCloseProbe | None = None
        self._upgrade: Upgrade | None = None
        self.idle_since = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether the connection can be closed without harm: no request, no part of one, no unsent response."""
        if self._lingering or self._transport is None:
            return True
        if self._upgrade is not None:
            return self._upgrade.is_idle
        busy = self._serving or self._head_complete or bool(self._head) or self._receives_body
        return not busy and self._transport.get_write_buffer_size() == 0

    @contextlib.contextmanager
    def serve_request(self, request: web.Request) -> Iterator[None]:
        """Mark the connection as busy with a request while the block runs."""
        self._cancel_timer()
        self._head_complete, self._serving, self._body = False, True, request.content
        if self._transport is not None:
            self._probe = HalfCloseProbe(self._transport, request)
        if self.half_closed.is_set():
            self._check_half_closed()
        try:
            yield
        finally:
            self._serving = False
            self._cancel_probe()
            self._wait_for_head()

    def upgrade(self, upgrade: Upgrade) -> None:
        """Stop applying the limits of HTTP requests: from now on, the client speaks another protocol."""
        self._upgrade = upgrade
        if self._pipelined_bytes and self._transport is not None:
            self._pipelined_bytes = 0
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close without sending what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    def close_idle(self) -> None:
        """Close a connection that is idle."""
        # asyncio's TLS transport cannot be aborted anymore once it has been closed twice.
        if self._transport is None or self._lingering or self._transport.is_closing():
            self.abort()
        else:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._connections.closed:
            self._transport.abort()
            return
        if not self._connections.admit(self):
            self._reject(
                TooManyConnections("the limit of connections (`limits.max_connections`) is reached; retry later")
            )
            if not self._connections.may_linger(self):
                self._transport.abort()
            return
        # The protocol must exist before the limits are set, because a TLS transport may call `pause_writing` at once.
        self._protocol = self._make_protocol()
        # `pause_writing` then reports any unsent byte, and draining waits for all of them. Not 0: asyncio's TLS
        # transport pauses at the limit itself, which is its normal state.
        self._transport.set_write_buffer_limits(high=1)
        self._protocol.connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._cancel_probe()
        self._write_timeout.cancel()
        self._connections.forget(self)
        self._transport = None
        if self._protocol is not None:
            self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not (self._lingering or self._receives_body or self._upgrade is not None):
            if self._serving or self._pipelines:
                self._hold_back_pipelined(data)
            elif not self._head_complete:
                self._measure_head(data)
        if not self._lingering and self._protocol is not None:
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Keep the connection open if the client may wait for a response."""
        if self._lingering or self._transport is None or self._upgrade is not None:
            return None
        if not (self._serving or self._head_complete or self._body is not None):
            return None
        # asyncio's TLS transport cannot be half-closed.
        if self._receives_body or self._transport.get_extra_info("ssl_object") is not None:
            return None
        self.half_closed.set()
        if self._serving:
            self._check_half_closed()
        elif not self._head_complete:
            # The parser may be about to start another request: the previous one may have just ended.
            remaining = self.idle_since + HALF_CLOSED_IDLE_SECONDS - self._loop.time()
            self._start_timer(remaining, self._close_after_idle_time)
        return True

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()
        if self._transport is not None:
            self._write_timeout.start(self._transport)

    def resume_writing(self) -> None:
        self._write_timeout.cancel()
        if self._protocol is not None:
            self._protocol.resume_writing()

    @property
    def _receives_body(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _check_half_closed(self) -> None:
        """Close if the rest of the request is missing; otherwise, find out whether the client still waits."""
        if self._receives_body:
            self.abort()
        elif self._probe is not None:
            self._probe.start()

    def _cancel_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _wait_for_head(self) -> None:
        self.idle_since = self._loop.time()
        if self._transport is None or self._lingering:
            return
        if self._pipelined_bytes:
            self._pipelined_bytes = 0
            self._transport.resume_reading()
        self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        seconds = HALF_CLOSED_IDLE_SECONDS if self.half_closed.is_set() else self._limits.idle_seconds
        self._start_timer(seconds, self._close_after_idle_time)

    def _close_after_idle_time(self, iterations: int = REACTION_ITERATIONS) -> None:
        """Close, unless the protocol is about to start another request."""
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            # The last response is still being sent; `WriteTimeout` limits that.
            self._start_idle_timer()
        elif iterations:
            self._timer = self._loop.call_soon(self._close_after_idle_time, iterations - 1)
        else:
            self.close_idle()

    def _measure_head(self, data: bytes) -> None:
        if not self._head:
            self._start_timer(self._limits.header_seconds, self._stop_slow_head)
        self._head += data[: self._limits.max_head_bytes + len(_HEAD_END)]
        # The parser skips empty lines before a request.
        start = len(self._head) - len(self._head.lstrip(b"\r\n"))
        end = self._head.find(_HEAD_END, start)
        size = len(self._head) if end < 0 else end + len(_HEAD_END)
        if size > self._limits.max_head_bytes:
            self._reject(head_too_large(self._limits))
        elif end >= 0:
            # Normally the request starts immediately.
            self._start_idle_timer()
            self._head.clear()
            self._head_complete = True

    def _hold_back_pipelined(self, data: bytes) -> None:
        self._pipelines = True
        self._pipelined_bytes += len(data)
        if self._pipelined_bytes > MAX_PIPELINED_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def _stop_slow_head(self) -> None:
        """Reject the head, unless the protocol is about to respond to what arrived last."""
        if self._transport is not None:
            self._transport.pause_reading()
            self._reject_slow_head(REACTION_ITERATIONS)

    def _reject_slow_head(self, iterations: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if iterations:
            self._loop.call_soon(self._reject_slow_head, iterations - 1)
            return
        seconds = self._limits.header_seconds
        self._reject(RequestTimeout(f"the request's headers took longer than {seconds:g} s (`limits.header_seconds`)"))

    def _reject(self, error: OsaurusError) -> None:
        """Send an error without a request, and close the connection once the client has read it."""
        assert self._transport is not None
        self._transport.write(_encode_response(self._connections.render_rejection(error)))
        self._linger()

    def _linger(self) -> None:
        """Close for writing, and discard what the client sends until it closes too.

        Closing a socket that has unread data resets the connection, and the client may lose the response.
        """
        assert self._transport is not None
        self._lingering = True
        self._head.clear()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
        self._start_timer(LINGER_SECONDS, self.abort)

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, callback)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WriteTimeout:
    """Aborts a connection whose client reads nothing of the unsent data for `seconds`.

    A slow client keeps its connection as long as the amount of unsent data decreases.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._progress_at = 0.0

    def start(self, transport: asyncio.Transport) -> None:
        """Start monitoring the unsent data."""
        self._unsent_bytes = transport.get_write_buffer_size()
        self._progress_at = asyncio.get_running_loop().time()
        self._schedule(transport)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self, transport: asyncio.Transport) -> None:
        """Abort the connection if there was no progress for too long."""
        unsent_bytes, now = transport.get_write_buffer_size(), asyncio.get_running_loop().time()
        if unsent_bytes < self._unsent_bytes:
            self._progress_at = now
        self._unsent_bytes = unsent_bytes
        if now - self._progress_at < self._seconds:
            self._schedule(transport)
            return
        self._timer = None
        log.info("client stopped reading; connection aborted", seconds=self._seconds, unsent_bytes=unsent_bytes)
        transport.abort()

    def _schedule(self, transport: asyncio.Transport) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._seconds / WRITE_CHECKS, self.check, transport)


def connection_of(request: web.Request) -> ConnectionGuard | None:
    """Return the guard of the request's connection, or None if it is closed."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, ConnectionGuard) else None


def _encode_response(response: web.Response) -> bytes:
    """Encode a response for a connection that has no request to respond to, and that closes afterwards."""
    body = response.body if isinstance(response.body, bytes) else b""
    headers = {**response.headers, hdrs.CONTENT_LENGTH: str(len(body)), hdrs.CONNECTION: "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
