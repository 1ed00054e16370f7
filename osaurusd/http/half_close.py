"""Clients that close their side of a connection after a request: some wait for the response, others are gone.

Both look the same until data is sent: the system of a client that is gone then resets the connection, and the next
write fails. Interim responses (RFC 9110, section 15.2) are data that every HTTP/1.1 client skips.
"""

import asyncio

from aiohttp import HttpVersion10, web

FIRST_PROBE_SECONDS = 0.02
MAX_PROBE_SECONDS = 10.0
PROBE_FACTOR = 4

HTTP_10_SECONDS = 1.0
"""How long the daemon takes to begin a response to an HTTP/1.0 client, which it cannot probe, before it gives up."""

_INTERIM_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HalfCloseProbe:
    """Checks, until the response begins, that a client that sends nothing more still waits for it.

    Once the response has begun, writing it shows whether the client is gone; a stream with nothing to write sends
    keep-alive data (`http.streaming`).

    Args:
        transport: the connection; its loss cancels the request.
        request: the request whose response the client may wait for.
    """

    def __init__(self, transport: asyncio.Transport, request: web.BaseRequest) -> None:
        self._transport = transport
        self._request = request
        self._seconds = FIRST_PROBE_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._request.version == HttpVersion10:
            self._schedule(HTTP_10_SECONDS)
        else:
            self._probe()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _probe(self) -> None:
        if self._request.writer.output_size > 0 or self._transport.is_closing():
            return
        if self._request.version == HttpVersion10:
            self._transport.abort()
            return
        self._transport.write(_INTERIM_RESPONSE)
        self._schedule(self._seconds)
        self._seconds = min(self._seconds * PROBE_FACTOR, MAX_PROBE_SECONDS)

    def _schedule(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._probe)
