"""The door: who may speak to the daemon at all. Everything here happens before any handler runs.

A web page in a browser on this machine can reach a loopback port. What stops it: the `Host` must be ours (`hosts.py`),
the `Origin` must be one we know (`osaurusd/origins.py` has the patterns), and bodies must be JSON, which a page cannot
send to another origin without asking first (`preflight.py`).
"""

import json
from collections.abc import Callable, Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd import origins
from osaurusd.config import Server
from osaurusd.errors import Forbidden, InvalidRequest, UnsupportedMediaType
from osaurusd.http import peer, preflight
from osaurusd.http.hosts import LOOPBACK_HOSTS, allowed_hosts, check_host
from osaurusd.wire.admin import SOCKET_HOST

_BODY_METHODS = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})

_FETCH_SITE = "Sec-Fetch-Site"
_FROM_NO_PAGE = frozenset({"none", "same-origin"})
_SHOWN_CHARACTERS = 100

# What OpenAI's clients look at besides the body.
_READABLE = "x-request-id, retry-after, x-should-retry"

_ALWAYS = {
    # A body is what its type says, and not what it looks like.
    "X-Content-Type-Options": "nosniff",
    # No page may embed an answer as image, script or style; what it may fetch, CORS says.
    "Cross-Origin-Resource-Policy": "same-origin",
}


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
        name = check_host(request, allowed_hosts(server()) | names())
        _check_origin(request, name, server().allowed_origins)
        if preflight.is_preflight(request):
            return preflight.answer(request)
        _check_content_type(request)
        return await handler(request)

    async def allow_reading(request: web.Request, response: web.StreamResponse) -> None:
        """Errors and streams included, for a page cannot see what it may not read."""
        response.headers.update(_ALWAYS)
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        found = request.headers.getall(hdrs.ORIGIN, [])
        if len(found) == 1 and _is_allowed(found[0], server().allowed_origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = found[0]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _READABLE

    app.middlewares.append(guard)
    app.on_response_prepare.append(allow_reading)


def guard_socket(app: web.Application, own_uid: int) -> None:
    """Guard an application on the Unix socket: our own user and root only, and nothing that comes from a browser.

    Root is let in because it can do all that anyway: it may become the user, and read and write what is his.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if peer.uid(request) not in (own_uid, 0):
            raise Forbidden("this socket belongs to another user")
        check_host(request, {SOCKET_HOST, "localhost"})
        if any(name in request.headers for name in (hdrs.ORIGIN, hdrs.REFERER, _FETCH_SITE)):
            raise Forbidden("requests from web pages are not taken here")
        _check_content_type(request)
        return await handler(request)

    app.middlewares.append(guard)


def _check_origin(request: web.Request, name: str, configured: Sequence[str]) -> None:
    """Refuse what a page asks for that may not.

    Args:
        request: whose headers the browser has set, and no page can.
        name: by which we were called.
        configured: patterns of origins that may.
    """
    found = request.headers.getall(hdrs.ORIGIN, [])
    if len(found) > 1:
        raise InvalidRequest("the request must have one `Origin` header at most")
    if found and not _is_allowed(found[0], configured):
        raise _not_known(found[0])
    if not found and not _is_of_no_other_page(request, name):
        raise Forbidden(
            "requests that a page of another site makes are not taken without its `Origin`: use fetch() in the mode "
            "`cors`, and add the page's origin to `server.allowed_origins`"
        )


def _is_of_no_other_page(request: web.Request, name: str) -> bool:
    """What the browser, if it is one, says of the page, for images and links that tell no origin.

    Pages on other ports of the same host are of the same site; over loopback, they may call anyway.
    """
    sites = set(request.headers.getall(_FETCH_SITE, []))
    return sites <= (_FROM_NO_PAGE | {"same-site"} if name in LOOPBACK_HOSTS else _FROM_NO_PAGE)


def _not_known(origin: str) -> Forbidden:
    shown = origin if len(origin) <= _SHOWN_CHARACTERS else f"{origin[:_SHOWN_CHARACTERS]}…"
    message = f"pages of the origin {shown!r} may not use this server"
    if not origins.is_origin(origin) and origin != origins.NULL:
        return Forbidden(
            f"{message}; `server.allowed_origins` has those that may, and this is none that could be there"
        )
    line = f"allowed_origins = [{json.dumps(origin)}]"
    told = (
        f"`{line}` under `[server]` in the config file lets them (`server.allowed_origins`), after `osaurusctl reload`"
    )
    warned = "; but any web page can send this one" if origin == origins.NULL else ""
    return Forbidden(f"{message}; {told}{warned}")


def _check_content_type(request: web.Request) -> None:
    if request.method in _BODY_METHODS and request.content_type != "application/json":
        raise UnsupportedMediaType(
            f"the body must be sent as `Content-Type: application/json`, not `{request.content_type}`"
        )


def _is_allowed(origin: str, configured: Sequence[str]) -> bool:
    """Configured origins, and pages that this machine itself serves over loopback."""
    return origins.is_loopback(origin) or origins.is_allowed(origin, configured)
