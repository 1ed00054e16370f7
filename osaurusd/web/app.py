"""Making an application: what every listener has in common."""

from aiohttp import web

from osaurusd.config import Config
from osaurusd.web import access, errors


def make_app(config: Config) -> web.Application:
    """An empty application that logs its requests and answers errors; the caller adds a guard, then routes."""
    app = web.Application(client_max_size=config.server.max_body_bytes)
    access.record_access(app)
    app.middlewares.append(errors.middleware)
    return app
