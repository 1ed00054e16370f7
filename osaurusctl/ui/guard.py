"""Checks of every request to the management page, before a handler runs.

Pages of other sites, and of other ports of this machine, must not use it, even if DNS rebinding makes the browser
believe that they are from here. Therefore the host and the origin must be exactly its own.
"""

from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from osaurusctl.errors import CliError
from osaurusctl.ui.errors import RequestError, error_response, from_cli_error
from osaurusctl.ui.sessions import Session, Sessions
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.page import ASSETS

SESSION = web.RequestKey("SESSION", Session)

OPEN_SESSION = "/manage/session"
"""Exchanges the token of a link for a session."""

_FETCH_SITE = "Sec-Fetch-Site"
_OWN_SITE = frozenset({"same-origin", "none"})
_READ = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-store",
}


@web.middleware
async def render_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Render every failure as JSON."""
    try:
        return await handler(request)
    except RequestError as error:
        return error_response(error)
    except CliError as error:
        return error_response(from_cli_error(error))
    except web.HTTPException as error:
        code = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED, 413: ErrorCode.REQUEST_TOO_LARGE}
        return error_response(
            RequestError(error.status, code.get(error.status, ErrorCode.INVALID_REQUEST), error.reason)
        )


def require_own_page(address: Callable[[], str]) -> Middleware:
    """Build a middleware that rejects requests of other pages; `address` returns the host and port of the server."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.getall(hdrs.HOST, []) != [address()]:
            raise _forbidden(f"the host must be {address()}")
        origins = request.headers.getall(hdrs.ORIGIN, [])
        if origins not in ([], [f"http://{address()}"]) or (not origins and request.method not in _READ):
            raise _forbidden("only the management page itself may send this request")
        if not set(request.headers.getall(_FETCH_SITE, [])) <= _OWN_SITE:
            raise _forbidden("pages of other sites may not use the management page")
        if request.method not in _READ and request.content_type != "application/json":
            raise RequestError(415, ErrorCode.UNSUPPORTED_MEDIA_TYPE, "`Content-Type` must be `application/json`")
        return await handler(request)

    return check


def require_session(sessions: Sessions) -> Middleware:
    """Build a middleware that rejects requests without a session, except for the files of the page."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_public(request):
            scheme, _, secret = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
            session = sessions.find(secret) if scheme.lower() == "bearer" else None
            if session is None:
                raise invalid_session()
            request[SESSION] = session
        return await handler(request)

    return check


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: no response may be embedded, cached or interpreted as something else, unless it says so."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def invalid_session() -> RequestError:
    return RequestError(
        401, ErrorCode.INVALID_API_KEY, 'the session is missing or has ended; run "osaurusctl ui" to open a new one'
    )


def _is_public(request: web.Request) -> bool:
    if request.method in _READ:
        return request.path == "/" or request.path.startswith(ASSETS)
    return (request.method, request.path) == (hdrs.METH_POST, OPEN_SESSION)


def _forbidden(message: str) -> RequestError:
    return RequestError(403, ErrorCode.FORBIDDEN, message)
