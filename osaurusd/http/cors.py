"""Cross-origin requests: which web pages may use the server, and the headers that their browsers need.

Any web page in a browser on this machine can send requests to a loopback port. A page is stopped by its origin, by the
`Host` it must send (`trusted_hosts.py`), and by the media type of bodies: before it sends `application/json`, a browser
sends a preflight request, which only succeeds for allowed origins.
"""

import json
import re
from collections.abc import Callable, Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd import origins
from osaurusd.config import Server
from osaurusd.errors import Forbidden, InvalidRequest, UnsupportedMediaType
from osaurusd.http.trusted_hosts import LOOPBACK_HOSTS, host_name
from osaurusd.wire.errors import as_json

PREFLIGHT_MAX_AGE_SECONDS = 600
MAX_REQUEST_HEADERS_CHARACTERS = 2048
MAX_SHOWN_CHARACTERS = 100
FETCH_SITE = "Sec-Fetch-Site"

_BODY_METHODS = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})
_SAME_ORIGIN = frozenset({"none", "same-origin"})

_REQUEST_PRIVATE_NETWORK = "Access-Control-Request-Private-Network"
_ALLOW_PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"

# The response headers that the client libraries of OpenAI and Anthropic read.
_EXPOSED_HEADERS = "x-request-id, request-id, retry-after, x-should-retry"

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # No page may embed a response as an image, script or style sheet.
    "Cross-Origin-Resource-Policy": "same-origin",
}

# A list of tokens (RFC 9110, section 5.6.2).
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TOKENS = re.compile(rf"{_TOKEN}(?:[ \t]*,[ \t]*{_TOKEN})*", re.ASCII)

# For paths that do not exist; the request after the preflight then gets a 404 that the page can read.
_DEFAULT_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST})


class Cors:
    """The cross-origin policy of a TCP listener.

    Args:
        server: returns the configuration in force.
    """

    def __init__(self, server: Callable[[], Server]) -> None:
        self._server = server

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reject requests of pages that are not allowed, and answer preflight requests of pages that are."""
        self._check_origin(request)
        if _is_preflight(request):
            return _preflight_response(request)
        return await handler(request)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal handler: let pages of allowed origins read the response."""
        response.headers.update(_SECURITY_HEADERS)
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        request_origins = request.headers.getall(hdrs.ORIGIN, [])
        if len(request_origins) == 1 and _is_allowed(request_origins[0], self._server().allowed_origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request_origins[0]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED_HEADERS

    def _check_origin(self, request: web.Request) -> None:
        request_origins = request.headers.getall(hdrs.ORIGIN, [])
        if len(request_origins) > 1:
            raise InvalidRequest("the request must have at most one `Origin` header")
        if request_origins and not _is_allowed(request_origins[0], self._server().allowed_origins):
            raise _origin_not_allowed(request_origins[0])
        if not request_origins and not _is_same_site(request) and not _follows_link(request):
            raise Forbidden(
                "a cross-site request must have an `Origin` header; use fetch() in the mode `cors`, and add the "
                "page's origin to `server.allowed_origins`"
            )


@web.middleware
async def require_json_body(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject bodies of other media types, which a web page can send to another origin without a preflight request.

    If no handler will read the body, the error about the path or the method says more.
    """
    is_handled = request.match_info.http_exception is None
    if is_handled and request.method in _BODY_METHODS and request.content_type != "application/json":
        raise UnsupportedMediaType(f"`Content-Type` must be `application/json`, not `{request.content_type}`")
    return await handler(request)


@web.middleware
async def reject_web_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject requests with headers that only browsers send."""
    if any(name in request.headers for name in (hdrs.ORIGIN, hdrs.REFERER, FETCH_SITE)):
        raise Forbidden("web pages may not use this socket")
    return await handler(request)


def _is_same_site(request: web.Request) -> bool:
    """Whether the browser, if one sent the request, declares that the page is not of another site.

    `same-site` includes other ports of the same host: over loopback those pages may use the server anyway.
    """
    allowed = _SAME_ORIGIN
    if host_name(request.headers.get(hdrs.HOST, "")) in LOOPBACK_HOSTS:
        allowed |= {"same-site"}
    return set(request.headers.getall(FETCH_SITE, [])) <= allowed


def _follows_link(request: web.Request) -> bool:
    """Whether the user opens `/` from a link on another page, which cannot read or embed what is shown."""
    modes, destinations = (request.headers.getall(f"Sec-Fetch-{name}", []) for name in ("Mode", "Dest"))
    return (request.method, request.path, modes, destinations) == (hdrs.METH_GET, "/", ["navigate"], ["document"])


def _is_allowed(origin: str, configured: Sequence[str]) -> bool:
    """Whether an origin is configured, or is a page that this machine itself serves over loopback."""
    return origins.is_loopback(origin) or origins.is_allowed(origin, configured)


def _origin_not_allowed(origin: str) -> Forbidden:
    shown = origin if len(origin) <= MAX_SHOWN_CHARACTERS else f"{origin[:MAX_SHOWN_CHARACTERS]}…"
    message = f"pages of the origin {as_json(shown)} may not use this server"
    if not origins.is_origin(origin) and origin != origins.NULL:
        return Forbidden(f"{message}, and it is not a valid origin for `server.allowed_origins`")
    line = f"allowed_origins = [{json.dumps(origin)}]"
    warning = " (any web page can send this origin)" if origin == origins.NULL else ""
    return Forbidden(
        f"{message}; to allow them{warning}, set `{line}` under `[server]` in the config file "
        '(`server.allowed_origins`) and run "osaurusctl reload"'
    )


def _is_preflight(request: web.Request) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def _preflight_response(request: web.Request) -> web.Response:
    """Allow the route's methods and the requested headers; `Cors.add_headers` adds the origin.

    Raises:
        InvalidRequest: the requested headers are malformed or too many.
    """
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(_allowed_methods(request))),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_MAX_AGE_SECONDS),
        hdrs.VARY: f"{hdrs.ACCESS_CONTROL_REQUEST_METHOD}, {hdrs.ACCESS_CONTROL_REQUEST_HEADERS}",
    }
    if requested := _requested_headers(request):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = requested
    # https://wicg.github.io/private-network-access/: pages of public networks need this permission too.
    if request.headers.get(_REQUEST_PRIVATE_NETWORK) == "true":
        headers[_ALLOW_PRIVATE_NETWORK] = "true"
    return web.Response(status=204, headers=headers)


def _allowed_methods(request: web.Request) -> frozenset[str]:
    error = request.match_info.http_exception
    return frozenset(error.allowed_methods) if isinstance(error, web.HTTPMethodNotAllowed) else _DEFAULT_METHODS


def _requested_headers(request: web.Request) -> str:
    requested = ", ".join(request.headers.getall(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, [])).strip()
    if requested and (len(requested) > MAX_REQUEST_HEADERS_CHARACTERS or not _TOKENS.fullmatch(requested)):
        raise InvalidRequest(f"`{hdrs.ACCESS_CONTROL_REQUEST_HEADERS}` is not a valid list of header names")
    return requested
