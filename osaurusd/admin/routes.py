"""The route group and the API version, which all parts of the admin API share."""

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

from osaurusd import __version__
from osaurusd.errors import VersionMismatch
from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup, RouteHandler
from osaurusd.wire import admin as wire
from osaurusd.wire.admin import API_HEADER, API_VERSION, VERSION_HEADER

PREFIX = "/v0"

ANY_VERSION = frozenset({wire.Route.STATUS, wire.Route.SHUTDOWN})
"""Paths that a client of any version may use: enough to recognize and stop a daemon of another version."""


def get(path: str, handler: RouteHandler) -> Route:
    """A GET route for a full path from `osaurusd.wire`."""
    return Route("GET", path.removeprefix(PREFIX), handler)


def post(path: str, handler: RouteHandler) -> Route:
    """A POST route for a full path from `osaurusd.wire`."""
    return Route("POST", path.removeprefix(PREFIX), handler)


def admin_group(*resources: Iterable[Route]) -> RouteGroup:
    """Build the route group of the admin API."""
    routes = [route for resource in resources for route in resource]
    return RouteGroup("admin", routes, error_response, prefixes=(PREFIX,))


@web.middleware
async def check_api_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject admin requests of another API version."""
    version = request.headers.get(API_HEADER)
    is_admin = request.path.startswith(f"{PREFIX}/")
    if is_admin and request.path not in ANY_VERSION and version != str(API_VERSION):
        sent = f"version {version}" if version else f"no `{API_HEADER}` header"
        raise VersionMismatch(
            f"this daemon ({__version__}) requires version {API_VERSION} of the admin API, but the request has {sent}; "
            "use osaurusctl of the same release, or restart the daemon after an upgrade"
        )
    return await handler(request)


async def add_version_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Add the API version and the release to the headers of a response."""
    response.headers[API_HEADER] = str(API_VERSION)
    response.headers[VERSION_HEADER] = __version__
