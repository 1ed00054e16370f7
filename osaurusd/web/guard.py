"""The door: who may speak to the daemon at all. Everything here happens before any handler runs.

A web page in a browser on this machine can reach a loopback port. What stops it: the `Host` must be ours (a page that
rebinds its own name to 127.0.0.1 still sends its own name), the `Origin` must be one we know, and bodies must be JSON
(which a page cannot send to another origin without asking first).
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.config import Server
from osaurusd.errors import Forbidden, InvalidRequest, UnsupportedMediaType
from osaurusd.web import peer
from osaurusd.wire.admin import SOCKET_HOST

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

_CORS_METHODS = "GET, POST, OPTIONS"
_CORS_MAX_AGE_SECONDS = "600"
_BODY_METHODS = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})


def guard_tcp(
    app: web.Application, server: Callable[[], Server], names: Callable[[], frozenset[str]] = frozenset
) -> None:
    """Guard an application that is reached over TCP.

    Args:
        app: not frozen yet.
        server: says what is allowed now.
        names: further values of `Host`, from the addresses that are bound.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        _check_host(request, allowed_hosts(server()) | names())
        _check_origin(request, server().allowed_origins)
        if _is_preflight(request):
            return _preflight(request)
        _check_content_type(request)
        return await handler(request)

    async def allow_reading(request: web.Request, response: web.StreamResponse) -> None:
        """Errors and streams included, for a page cannot see what it may not read."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and _is_allowed(origin, server().allowed_origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "x-request-id"
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    app.middlewares.append(guard)
    app.on_response_prepare.append(allow_reading)


def guard_socket(app: web.Application, own_uid: int) -> None:
    """Guard an application on the Unix socket: our own user only, and nothing that comes from a browser."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if peer.uid(request) not in (own_uid, 0):
            raise Forbidden("this socket belongs to another user")
        _check_host(request, {SOCKET_HOST, "localhost"})
        if hdrs.ORIGIN in request.headers or hdrs.REFERER in request.headers:
            raise Forbidden("requests from web pages are not taken here")
        _check_content_type(request)
        return await handler(request)

    app.middlewares.append(guard)


def allowed_hosts(server: Server) -> frozenset[str]:
    """Names, without port, that the `Host` header may have. An address that means `all` is no name."""
    bound = [] if _is_wildcard(server.host) else [server.host]
    return LOOPBACK_HOSTS | {_bracketed(host.lower()) for host in (*bound, *server.allowed_hosts)}


def _check_host(request: web.Request, allowed: Iterable[str]) -> None:
    values = request.headers.getall(hdrs.HOST, [])
    if len(values) != 1:
        raise InvalidRequest("the request must have exactly one `Host` header")
    if _without_port(values[0].lower()) not in allowed:
        raise Forbidden(
            f"the `Host` {values[0]!r} is none of this server's names; add it to `server.allowed_hosts` if it should be"
        )


def _check_origin(request: web.Request, configured: Sequence[str]) -> None:
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and not _is_allowed(origin, configured):
        raise Forbidden(
            f"pages of the origin {origin!r} may not use this server; add it to `server.allowed_origins` if they should"
        )
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and origin not in configured:
        raise Forbidden("requests that a page of another site makes are not taken")


def _check_content_type(request: web.Request) -> None:
    if request.method in _BODY_METHODS and request.content_type != "application/json":
        raise UnsupportedMediaType(
            f"the body must be sent as `Content-Type: application/json`, not `{request.content_type}`"
        )


def _is_allowed(origin: str, configured: Sequence[str]) -> bool:
    """Configured origins exactly, and pages that this machine itself serves over loopback."""
    return origin in configured or _is_loopback(origin)


def _is_loopback(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and _without_port(parts.netloc.lower()) in LOOPBACK_HOSTS


def _is_preflight(request: web.Request) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def _preflight(request: web.Request) -> web.Response:
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _CORS_METHODS,
        hdrs.ACCESS_CONTROL_MAX_AGE: _CORS_MAX_AGE_SECONDS,
    }
    if wanted := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    return web.Response(status=204, headers=headers)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and not name.endswith(":") else host


def _bracketed(host: str) -> str:
    """A configured name as it stands in a `Host` header, less its port; IPv6 addresses stand in brackets there."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return _without_port(host)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""
