"""Authentication: API keys over TCP, and the user id of the client on the Unix socket.

Both are checked before a handler runs and before a body is read.
"""

import asyncio
import functools
import re
import socket
import struct
import sys
from collections.abc import Callable, Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from osaurusd import __version__
from osaurusd.config import Server
from osaurusd.errors import ConfigError, Forbidden, InvalidApiKey
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.health import PUBLIC_PATHS
from osaurusd.http.paths import normalize_path
from osaurusd.http.request import CONTEXT
from osaurusd.http.routes import ResponseHook
from osaurusd.http.trusted_hosts import is_loopback
from osaurusd.log import get_logger
from osaurusd.wire.admin import VERSION_HEADER
from osaurusd.wire.keys import Protection

log = get_logger(__name__)

API_KEY_HEADER = "x-api-key"

# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")

_REMEDIES = (
    'create a key with "osaurusctl key create" (requires a running daemon; start one with `--host localhost`), bind to '
    "this machine only (`server.host`), or disable API keys (`--insecure`, `server.insecure`)"
)

# struct ucred of Linux: pid, uid, gid.
_UCRED = struct.Struct("3i")

# struct xucred of macOS (sys/ucred.h) begins with version and uid. unix(4) names level 0 (SOL_LOCAL) and option 1
# (LOCAL_PEERCRED).
_XUCRED_HEAD = struct.Struct("2I")
_XUCRED_BYTES = 76
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


class AuthPolicy:
    """Decides which clients need an API key, by the addresses that are bound and not by the configured host.

    Args:
        addresses: the addresses that clients connect to.
        keys: the accepted keys.
    """

    def __init__(self, addresses: Sequence[str], keys: ApiKeys) -> None:
        self.exposed = not all(map(is_loopback, addresses))
        self._addresses = addresses
        self._keys = keys

    def requires_keys(self, server: Server) -> bool:
        """Whether some clients need a key."""
        return server.require_key or (self.exposed and not server.insecure)

    def requires_key(self, server: Server, request: web.Request) -> bool:
        """Whether this client needs a key. A reverse proxy on this machine counts as a client on this machine."""
        if server.require_key or not server.trust_loopback:
            return self.requires_keys(server)
        return self.requires_keys(server) and not _is_local(request)

    def check(self, server: Server) -> None:
        """Check that a key exists if one is required.

        Raises:
            ConfigError: no client could use the server.
        """
        if not self.requires_keys(server) or len(self._keys):
            return
        fault = f" ({self._keys.fault})" if self._keys.fault else ""
        if server.require_key:
            reason, param = "`server.require_key` is set", "server.require_key"
        else:
            exposed = ", ".join(address for address in self._addresses if not is_loopback(address))
            reason, param = f"other machines can connect to {exposed}", "server.host"
        raise ConfigError(f"{reason}, but there is no API key{fault}: {_REMEDIES}", param=param)

    def faults(self, server: Server) -> list[str]:
        """Return the problems that status reports."""
        if self.requires_keys(server) and not len(self._keys):
            return ['TCP clients need an API key, but there is none; create one with "osaurusctl key create"']
        return []

    def protection(self, server: Server) -> Protection:
        """Return the policy as status reports it."""
        return Protection(
            exposed=self.exposed,
            key_required=self.requires_keys(server),
            trusts_loopback=server.trust_loopback and not server.require_key,
            keys=len(self._keys),
            tls=server.tls_certificate is not None,
        )


def require_api_key(keys: ApiKeys, is_required: Callable[[web.Request], bool]) -> Middleware:
    """Build a middleware that rejects requests without a valid key if `is_required` returns True for them.

    It belongs after the CORS middleware, which answers preflight requests: those carry no key. Where no key is
    required, none is checked: OpenAI's client libraries always send one.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if normalize_path(request.path) not in PUBLIC_PATHS and is_required(request):
            secret = _request_key(request)
            key_id = _find_key(keys, secret)
            context = request[CONTEXT]
            context.owner, context.check_key = key_id, functools.partial(_find_key, keys, secret)
            if keys.record_use(key_id):
                await _save(keys)
        return await handler(request)

    return check


def name_version(is_required: Callable[[web.Request], bool]) -> ResponseHook:
    """Build a hook that adds the daemon's version to responses, unless the client lacks access or a required key."""

    async def add_version(request: web.Request, response: web.StreamResponse) -> None:
        known = CONTEXT in request and (request[CONTEXT].owner or not is_required(request))
        if known and response.status not in (401, 403):
            response.headers[VERSION_HEADER] = __version__

    return add_version


def require_user(uid: int) -> Middleware:
    """Build a middleware that accepts only Unix-socket clients of this user and of root."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request_uid(request) not in (uid, 0):
            raise Forbidden("this socket belongs to another user")
        return await handler(request)

    return check


def request_uid(request: web.Request) -> int | None:
    """Return the user id of the process that connected to the Unix socket, or None if the connection is closed."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    return None if connection is None else socket_uid(connection)


def socket_uid(connection: socket.socket) -> int:
    """Return the user id of the peer of a connected Unix socket.

    Raises:
        OSError: the connection is closed.
    """
    if sys.platform == "darwin":
        _, uid = _XUCRED_HEAD.unpack_from(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES))
        return int(uid)
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _find_key(keys: ApiKeys, secret: str) -> str:
    """Return the id of a key.

    Raises:
        InvalidApiKey: the key is not accepted.
    """
    key_id = keys.find(secret)
    if key_id is None:
        raise InvalidApiKey("the API key is not valid; it may have been revoked")
    return key_id


async def _save(keys: ApiKeys) -> None:
    try:
        await asyncio.to_thread(keys.save)
    except OSError as error:
        log.warning("cannot save when API keys were last used", reason=str(error))


def _request_key(request: web.Request) -> str:
    """Return the key in the request's headers. Error messages never repeat what was sent.

    Raises:
        InvalidApiKey: there is no key, or there are several different ones.
    """
    keys = {_bearer_token(value) for value in request.headers.getall(hdrs.AUTHORIZATION, [])}
    keys |= {_checked_token(value, API_KEY_HEADER) for value in request.headers.getall(API_KEY_HEADER, [])}
    if not keys:
        raise InvalidApiKey(
            "an API key is required: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`; "
            'create one with "osaurusctl key create"'
        )
    if len(keys) > 1:
        raise InvalidApiKey("the request contains several different API keys")
    return keys.pop()


def _bearer_token(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidApiKey("the `Authorization` header must be `Bearer KEY`; other schemes are not supported")
    return _checked_token(token.strip(" "), hdrs.AUTHORIZATION)


def _checked_token(value: str, header: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise InvalidApiKey(f"the `{header}` header does not contain a well-formed API key")
    return value


def _is_local(request: web.Request) -> bool:
    """Whether the client connected over loopback; False if the connection is closed."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer is not None and is_loopback(str(peer[0]))
