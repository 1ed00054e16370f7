"""Making an application: what every listener has in common."""

import socket

from aiohttp import web

from osaurusd.config import Config
from osaurusd.web import access, errors
from osaurusd.web.tls import Tls, TlsSite

# Handlers have nothing left to wait for once the pool is closed; this only bounds a client that does not read.
HANDLER_END_SECONDS = 2.0


def make_app(config: Config) -> web.Application:
    """An empty application that logs its requests and answers errors; the caller adds a guard, then routes."""
    app = web.Application(client_max_size=config.server.max_body_bytes)
    access.record_access(app)
    app.middlewares.append(errors.middleware)
    return app


async def open_app(app: web.Application, listeners: list[socket.socket], tls: Tls | None = None) -> web.AppRunner:
    """Serve an application on sockets that listen already."""
    # handler_cancellation: a client that hangs up ends its handler, and with it the generation.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=HANDLER_END_SECONDS, handle_signals=False
    )
    await runner.setup()
    for listener in listeners:
        site = web.SockSite(runner, listener) if tls is None else TlsSite(runner, listener, tls.context)
        await site.start()
    return runner
