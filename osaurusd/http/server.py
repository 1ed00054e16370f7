"""Makes connections and their requests, and counts them."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR

from osaurusd.http import limits, refusals
from osaurusd.http.connection import Connection
from osaurusd.http.request import Request

# Beyond these, clients that are turned away may miss the reason: each takes a descriptor until it has closed its end.
MAX_TURNED_AWAY = 32


class Server(web.Server):
    """The connections of an application.

    Args:
        app: whose `GATE` has the limits.
        handler: aiohttp's, which answers requests.
    """

    def __init__(self, app: web.Application, handler: Any) -> None:
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)
        self.app = app
        self.gate = app[limits.GATE]
        self._in: set[Connection] = set()
        self._turned_away: set[Connection] = set()

    def __call__(self) -> Connection:
        found = self.gate.limits
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            max_line_size=found.max_request_line_bytes,
            # Never the same as for the line, for an error that says which limit it was is told apart by that alone.
            max_field_size=found.max_header_bytes + (found.max_header_bytes == found.max_request_line_bytes),
            max_headers=found.max_headers,
            keepalive_timeout=found.idle_seconds,
            access_log=None,
            # What has not arrived when the answer is out is not waited for: the connection is closed.
            lingering_time=0,
            # Bodies are made plain where they are read, for only there it is known how large they may be.
            auto_decompress=False,
        )

    def let_in(self, connection: Connection) -> bool:
        """Whether there is room for it. The one that has been idle for longest makes room if need be."""
        if len(self._in) >= limits.max_connections(self.gate.limits):
            idle = min((one for one in self._in if one.is_idle), key=lambda one: one.idle_since, default=None)
            if idle is None:
                return False
            self._in.discard(idle)
            idle.make_room()
        self._in.add(connection)
        return True

    def may_linger(self, connection: Connection) -> bool:
        """Whether one that was not let in may stay until it has heard why."""
        if len(self._turned_away) >= MAX_TURNED_AWAY:
            return False
        self._turned_away.add(connection)
        return True

    def let_out(self, connection: Connection) -> None:
        """It is closed."""
        self._in.discard(connection)
        self._turned_away.discard(connection)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: Any,
        task: "asyncio.Task[None]",
    ) -> Request:
        config = self.gate.config
        fault = refusals.of_head(message, config.limits.max_head_bytes)
        if fault is not None or message is ERROR:
            # Also those who speak another version, or none, are answered in ours.
            message = message._replace(version=HttpVersion11)
        request = Request(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=config.server.max_body_bytes,
        )
        if fault is not None:
            request[limits.FAULT] = fault
        return request
