"""Health checks, which need no API key.

`/health` and `/health/live` answer as long as the daemon serves its ports. `/health/ready` also says whether it accepts
requests for models: routers send them to other hosts while it does not.
"""

import msgspec
from aiohttp import web

from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.openapi import PREFIXES
from osaurusd.http.request import CONTEXT
from osaurusd.http.routes import Route, RouteGroup

LIVE_PATHS = ("/health", "/health/live")
READY_PATH = "/health/ready"
PUBLIC_PATHS = frozenset(prefix + path for prefix in PREFIXES for path in (*LIVE_PATHS, READY_PATH))
"""Paths that need no key; they only reveal whether the daemon accepts requests."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a health check."""

    status: str = "ok"


def health_routes() -> RouteGroup:
    """Create the route group."""
    routes = [*(Route("GET", path, _show_live) for path in LIVE_PATHS), Route("GET", READY_PATH, _show_ready)]
    return RouteGroup("health", routes, error_response, PREFIXES)


async def _show_live(_: web.Request) -> web.Response:
    return json_response(Health())


async def _show_ready(request: web.Request) -> web.Response:
    """Report whether requests for models are accepted; raises the error that such a request gets otherwise."""
    request[CONTEXT].admission.check_open()
    return json_response(Health())
