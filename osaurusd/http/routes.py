"""Routes, and the groups that give them a common error format."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from osaurusd.errors import OsaurusError

RouteHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ResponseHook = Callable[[web.Request, web.StreamResponse], Awaitable[None]]
ErrorResponse = Callable[[OsaurusError], web.Response]


class Route(msgspec.Struct, frozen=True):
    """One endpoint.

    Attributes:
        path: relative to each prefix of the route's group, in aiohttp's syntax: `/models/{model:.+}`.
        admitted: the route counts against `limits.max_requests`, and `limits.request_seconds` applies to it. It is
            rejected while the daemon drains.
    """

    method: str
    path: str
    handler: RouteHandler
    admitted: bool = False


class RouteGroup(msgspec.Struct, frozen=True):
    """The routes of one API.

    Attributes:
        name: identifies the group in the log.
        error_response: renders an error of these routes, and of unknown paths below the non-empty prefixes. The first
            group of an application also renders the errors of all other unknown paths.
        prefixes: every route is served below each of them.
        header: the group serves only requests with this header, instead of another group with the same paths.
        request_id_header: a response header for the id of the request, besides the one that all responses have.
    """

    name: str
    routes: Sequence[Route]
    error_response: ErrorResponse
    prefixes: Sequence[str] = ("",)
    header: str | None = None
    request_id_header: str | None = None

    @property
    def paths(self) -> list[tuple[str, Route]]:
        """Every full path with its route."""
        return [(prefix + route.path, route) for prefix in self.prefixes for route in self.routes]

    def owned_prefix(self, path: str) -> str:
        """Return the longest non-empty prefix of the group that `path` is below, or an empty string."""
        owned = [prefix for prefix in self.prefixes if prefix and (path == prefix or path.startswith(f"{prefix}/"))]
        return max(owned, key=len, default="")
