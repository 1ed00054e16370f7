"""Preflights: what browsers ask before a page of another origin may send JSON or headers of its own.

They get here only from origins that are allowed; `guard.py` refuses the others without a word that allows anything.
"""

import re

from aiohttp import hdrs, web

from osaurusd.errors import InvalidRequest

MAX_AGE_SECONDS = 600
MAX_HEADERS_CHARACTERS = 2048

_REQUEST_PRIVATE_NETWORK = "Access-Control-Request-Private-Network"
_ALLOW_PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"

# RFC 9110, 5.6.2, in lists.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TOKENS = re.compile(rf"{_TOKEN}(?:[ \t]*,[ \t]*{_TOKEN})*", re.ASCII)

# What there would be to ask for at a path that does not exist; the request itself then says so.
_USUAL = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST})


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks for itself, and not for a page."""
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def answer(request: web.Request) -> web.Response:
    """What the route takes; whom it is for, `guard.py` adds.

    Raises:
        InvalidRequest: the headers that are asked for are no names of headers, or too many.
    """
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(_methods(request))),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_SECONDS),
        hdrs.VARY: f"{hdrs.ACCESS_CONTROL_REQUEST_METHOD}, {hdrs.ACCESS_CONTROL_REQUEST_HEADERS}",
    }
    if wanted := _wanted_headers(request):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    # https://wicg.github.io/private-network-access/: pages of other networks must be allowed once more.
    if request.headers.get(_REQUEST_PRIVATE_NETWORK) == "true":
        headers[_ALLOW_PRIVATE_NETWORK] = "true"
    return web.Response(status=204, headers=headers)


def _methods(request: web.Request) -> frozenset[str]:
    refusal = request.match_info.http_exception
    return frozenset(refusal.allowed_methods) if isinstance(refusal, web.HTTPMethodNotAllowed) else _USUAL


def _wanted_headers(request: web.Request) -> str:
    wanted = ", ".join(request.headers.getall(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, [])).strip()
    if wanted and (len(wanted) > MAX_HEADERS_CHARACTERS or not _TOKENS.fullmatch(wanted)):
        raise InvalidRequest(f"`{hdrs.ACCESS_CONTROL_REQUEST_HEADERS}` is no list of header names")
    return wanted
