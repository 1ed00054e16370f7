"""API keys at the door. Everything here happens before a handler runs, and before a body is read."""

import asyncio
import re
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.errors import InvalidApiKey
from osaurusd.http.keyring import Keyring
from osaurusd.log import get_logger

log = get_logger(__name__)

API_KEY = "x-api-key"

WITHOUT_KEY = frozenset({"/health", "/v1/health"})
"""What monitors and load balancers may ask without a key. It tells no more than that the daemon serves."""

# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


def ask_for_keys(app: web.Application, keyring: Keyring, is_asked: Callable[[web.Request], bool]) -> None:
    """Take requests with a key only, where `is_asked` says so; called after the guard that answers preflights.

    Where no key is asked for, none is looked at: OpenAI's clients always send something.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in WITHOUT_KEY and is_asked(request):
            key = keyring.find(_presented(request))
            if key is None:
                raise InvalidApiKey("this API key is not known here; it may have been revoked")
            if keyring.note_use(key):
                await _save(keyring)
        return await handler(request)

    app.middlewares.append(check)


async def _save(keyring: Keyring) -> None:
    try:
        await asyncio.to_thread(keyring.save)
    except OSError as error:
        log.warning("when API keys were used could not be saved", reason=str(error))


def _presented(request: web.Request) -> str:
    """The key that a request has in its headers. No message repeats what was sent.

    Raises:
        InvalidApiKey: there is none, or not exactly one.
    """
    found = {_bearer(value) for value in request.headers.getall(hdrs.AUTHORIZATION, [])}
    found |= {_token(value, API_KEY) for value in request.headers.getall(API_KEY, [])}
    if not found:
        raise InvalidApiKey(
            "an API key is needed here: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`; "
            "`osaurusctl key create` makes one"
        )
    if len(found) > 1:
        raise InvalidApiKey("the request has several API keys that contradict each other")
    return found.pop()


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidApiKey("the `Authorization` header must be `Bearer KEY`; other schemes are not known here")
    return _token(token.strip(" "), hdrs.AUTHORIZATION)


def _token(value: str, header: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise InvalidApiKey(f"the `{header}` header does not have an API key of the form that keys have")
    return value
