"""Requests to paired hosts: HTTP over TLS, with this host's certificate and the other one's pinned."""

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec

from osaurusd.errors import HostUnreachable, OsaurusError, from_code
from osaurusd.hosts import link
from osaurusd.hosts.identity import IdentityFile
from osaurusd.hosts.registry import Host, HostRegistry
from osaurusd.hosts.server import MAX_MESSAGE_BYTES
from osaurusd.hosts.tls import client_context
from osaurusd.log import get_logger
from osaurusd.wire.errors import ErrorCode, ErrorEnvelope

log = get_logger(__name__)

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0

_CLOSED = {errno.ECONNRESET, errno.EPIPE}

_SAME_RELEASE = "install the same release of osaurusd on both hosts"

T = TypeVar("T")


class HostClient:
    """Connects to paired hosts; one per daemon. Connections are kept for a while and used again.

    Every failure to reach a host, at the beginning or while a response arrives, is a `HostUnreachable`. An error that
    the host responds with is raised as it would be there.

    Args:
        identity: this host.
        registry: the connections to a host that is removed from it end at once.
    """

    def __init__(self, identity: IdentityFile, registry: HostRegistry) -> None:
        self._identity = identity
        self._registry = registry
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        registry.on_change(self._close_removed)

    @contextlib.asynccontextmanager
    async def request(
        self,
        host: Host,
        method: str,
        path: str,
        *,
        json: object = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_SECONDS,  # noqa: ASYNC109  it limits each pause, not the whole request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and yield the response, whose body is not read yet.

        Args:
            host, method, path: what to request.
            json: the body, which is encoded as JSON.
            data: any other body that aiohttp accepts.
            headers: further headers.
            timeout: seconds in which the response has to begin, and between its parts.

        Raises:
            HostUnreachable: the host cannot be reached, or the connection breaks.
            OsaurusError: the host responded with this error.
        """
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=timeout)
        sent = dict(headers or {})
        if json is not None:
            data, sent["Content-Type"] = msgspec.json.encode(json), "application/json"
        with _reported(host):
            session = await self._session(host)
            async with session.request(method, host.url + path, data=data, headers=sent, timeout=limits) as response:
                if response.status >= 400:
                    raise _error(host, response.status, await response.read())
                yield response

    async def fetch(self, host: Host, path: str, kind: type[T], *, json: object = None) -> T:
        """Request a JSON document of a type; with `json`, by POST. Raises what `request` raises."""
        async with self.request(host, "GET" if json is None else "POST", path, json=json) as response:
            body = await response.read()
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HostUnreachable(
                f'host "{host.name}" sent an unexpected response to {path}: {error}; {_SAME_RELEASE}'
            ) from error

    @contextlib.asynccontextmanager
    async def websocket(self, host: Host, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a WebSocket. Raises what `request` raises."""
        with _reported(host):
            session = await self._session(host)
            try:
                async with session.ws_connect(host.url + path, max_msg_size=MAX_MESSAGE_BYTES) as connection:
                    yield connection
            except aiohttp.WSServerHandshakeError as error:
                raise HostUnreachable(
                    f'host "{host.name}" does not serve {path} (HTTP status {error.status}); {_SAME_RELEASE}'
                ) from error

    async def close(self) -> None:
        """Close all connections."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def _session(self, host: Host) -> aiohttp.ClientSession:
        """Return the session whose connections accept only this host's certificate."""
        if not host.url:
            raise HostUnreachable(
                f'host "{host.name}" accepts no connections: set `distributed.listen` there, and pair the hosts again'
            )
        if host.fingerprint not in self._sessions:
            identity = await self._identity.get()
            context = await asyncio.to_thread(client_context, identity, host)
            # No await from here on, so that a later removal closes the session.
            if self._registry.by_fingerprint(host.fingerprint) is None:
                raise HostUnreachable(f'host "{host.name}" is no longer paired')
            if host.fingerprint not in self._sessions:
                self._sessions[host.fingerprint] = aiohttp.ClientSession(
                    # A group needs as many connections as it needs.
                    connector=aiohttp.TCPConnector(limit=0, ssl=context),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                    trust_env=False,
                )
        return self._sessions[host.fingerprint]

    async def _close_removed(self) -> None:
        paired = {host.fingerprint for host in self._registry.all()}
        for fingerprint in self._sessions.keys() - paired:
            await self._sessions.pop(fingerprint).close()


@contextlib.contextmanager
def _reported(host: Host) -> Iterator[None]:
    """Report that the host cannot be reached, in one form."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise HostUnreachable(
            f'{host.url} is not the host "{host.name}" that was paired: its certificate differs; if its identity was '
            f'reset, run "osaurusctl host rm {host.name}", and pair it again'
        ) from error
    except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
        raise HostUnreachable(f'host "{host.name}" ({host.url}) {_describe(error)}') from error


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not respond; check its daemon and the network"
    reason = _ssl_reason(error)
    if reason is not None and "ALERT" in reason:
        return "does not accept this host; pair the hosts again"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {link.describe(error.os_error)}; check its daemon and the network"
    if isinstance(error, aiohttp.ServerDisconnectedError) or getattr(error, "errno", None) in _CLOSED:
        # TLS 1.3 reports a rejected certificate only after the handshake, often as a mere end of the connection.
        return "closed the connection; if this persists, it may not know this host any more: pair the hosts again"
    return f"closed the connection ({str(error) or type(error).__name__})"


def _ssl_reason(error: BaseException) -> str | None:
    """Return OpenSSL's name of an error that a TLS connection ended with."""
    for each in (error, error.__cause__, getattr(error, "os_error", None)):
        if isinstance(each, ssl.SSLError):
            return each.reason
    return None


def _error(host: Host, status: int, body: bytes) -> OsaurusError:
    try:
        error = msgspec.json.decode(body, type=ErrorEnvelope).error
        code = ErrorCode(error.code or "")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return HostUnreachable(f'host "{host.name}" responded with HTTP status {status}')
    converted = from_code(code, f'host "{host.name}": {error.message}')
    converted.param = error.param
    return converted
