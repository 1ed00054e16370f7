"""Making an application: what every listener has in common."""

import socket

from aiohttp import web

from osaurusd.config import Config
from osaurusd.http import access, errors, limits, request
from osaurusd.http.limits import GATE, Gate
from osaurusd.http.server import Server
from osaurusd.http.tls import Tls, TlsSite

# Handlers have nothing left to wait for once the pool is closed; this only bounds a client that does not read.
HANDLER_END_SECONDS = 2.0


def make_app(config: Config, gate: Gate | None = None) -> web.Application:
    """An empty application that logs its requests and answers errors; the caller adds a guard, then routes.

    Args:
        config: what holds if no gate says what is in force.
        gate: what limits those that share it; left out, the application has one of its own.
    """
    app = web.Application()
    app[GATE] = gate or Gate(lambda: config)
    access.record_access(app)
    app.middlewares.append(errors.middleware)
    app.middlewares.append(limits.middleware)
    app.on_response_prepare.append(request.close_unfinished)
    return app


async def open_app(app: web.Application, listeners: list[socket.socket], tls: Tls | None = None) -> web.AppRunner:
    """Serve an application on sockets that listen already."""
    runner = _Runner(app, shutdown_timeout=HANDLER_END_SECONDS, handle_signals=False)
    await runner.setup()
    for listener in listeners:
        site = web.SockSite(runner, listener) if tls is None else TlsSite(runner, listener, tls.context)
        await site.start()
    return runner


class _Runner(web.AppRunner):
    """Has our connections made."""

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        return Server(self.app, made.request_handler)
