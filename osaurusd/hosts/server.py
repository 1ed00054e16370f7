"""The control server: a TLS port on which paired hosts send requests, and unpaired clients can do nothing but pair.

What a client may do is decided by its certificate, before the first byte of a request is parsed. A connection with the
certificate of a paired host is served as HTTP. Without a certificate it speaks the pairing protocol, for a few seconds.
Any other certificate fails the handshake. Unpaired clients have limits of their own, so that they cannot use up what
paired hosts need.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from osaurusd.config import Config
from osaurusd.hosts.identity import Identity
from osaurusd.hosts.registry import Host, HostRegistry
from osaurusd.hosts.tls import peer_fingerprint, server_context
from osaurusd.http.app import create_app
from osaurusd.http.connection import connection_of
from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.server import TLS_SHUTDOWN_SECONDS, HttpServer
from osaurusd.log import get_logger

log = get_logger(__name__)

MAX_UNPAIRED = 32
MAX_UNPAIRED_PER_ADDRESS = 8
"""Connections that are not, or not yet, those of paired hosts."""

MAX_CONNECTIONS = 128
HANDSHAKE_SECONDS = 5.0
UNPAIRED_SECONDS = 10.0
UNPAIRED_BYTES = 8 * 1024
ACCEPT_RETRY_SECONDS = 1.0
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_PEER = web.RequestKey("PEER", Host)


def peer(request: web.Request) -> Host:
    """Return the paired host that sent a request."""
    return request[_PEER]


class ControlServer:
    """Serves paired hosts.

    Args:
        identity: this host's certificate and key.
        registry: the paired hosts.
        routes: what paired hosts can request, with full paths. A handler finds out who asks with `peer`.
        config: returns the configuration in force.
        pair: holds the conversation with an unpaired client.
    """

    def __init__(
        self,
        identity: Identity,
        registry: HostRegistry,
        routes: Sequence[Route],
        *,
        config: Callable[[], Config],
        pair: Conversation,
    ) -> None:
        self._identity = identity
        self._registry = registry
        self._config = config
        self._pair = pair
        group = RouteGroup("hosts", routes, error_response)
        app = create_app([group], self._get_config, middlewares=[self._require_peer])
        self._http = HttpServer(app, self._get_config, error_response)
        self._unpaired: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[socket.socket] = []
        self._transports: dict[str, set[asyncio.Transport]] = {}
        self._context: ssl.SSLContext | None = None
        registry.on_change(self._apply_registry)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on sockets that listen already; `close` closes them."""
        await self._apply_registry()
        await self._http.start([])
        self._listeners.extend(sockets)
        for listener in sockets:
            self._spawn(self._accept(listener))

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections continue."""
        for task in self._tasks:
            task.cancel()
        for listener in self._listeners:
            listener.close()

    async def close(self) -> None:
        """Close the listening sockets and all connections."""
        self.stop_accepting()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def protocol_for(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """Return the protocol of a connection whose handshake is done; None for an unpaired client's."""
        fingerprint = peer_fingerprint(transport.get_extra_info("ssl_object"))
        if fingerprint is None or self._registry.by_fingerprint(fingerprint) is None:
            return None
        transports = self._transports.setdefault(fingerprint, set())
        transports -= {each for each in transports if each.is_closing()}
        transports.add(transport)
        return self._http.new_connection()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("cannot accept a connection of another host", reason=str(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            if self._has_room(address[0]):
                self._spawn(self._serve(connection, address[0]))
            else:
                connection.close()

    def _has_room(self, address: str) -> bool:
        return self._unpaired[address] < MAX_UNPAIRED_PER_ADDRESS and self._unpaired.total() < MAX_UNPAIRED

    async def _serve(self, connection: socket.socket, address: str) -> None:
        """Complete the handshake of a new connection, and talk to it if it is an unpaired client's."""
        with self._counted(address):
            try:
                transport, protocol = await self._shake_hands(connection)
            except (OSError, TimeoutError) as error:
                log.debug("handshake of another host failed", address=address, reason=str(error))
                return
            if protocol.unpaired is not None:
                await self._talk(transport, *protocol.unpaired)

    async def _talk(
        self, transport: asyncio.Transport, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Talk to an unpaired client, and cut it off if it does not follow the protocol. Closes the connection."""
        try:
            async with asyncio.timeout(UNPAIRED_SECONDS):
                await self._pair(reader, writer)
            await _close(writer)
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            address = writer.get_extra_info("peername")[0]
            log.info("unpaired client rejected", address=address, reason=type(error).__name__)
        finally:
            transport.abort()
            await _close(writer)

    async def _shake_hands(self, connection: socket.socket) -> tuple[asyncio.Transport, "_PendingProtocol"]:
        transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: _PendingProtocol(self),
            connection,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
        )
        return transport, protocol

    @contextlib.contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        self._unpaired[address] += 1
        try:
            yield
        finally:
            self._unpaired[address] -= 1
            # Otherwise the counter keeps every address that ever connected.
            self._unpaired += Counter()

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _apply_registry(self) -> None:
        """Accept the certificates of exactly the hosts that are paired now, and end the connections of others."""
        hosts = self._registry.all()
        self._context = await asyncio.to_thread(server_context, self._identity, hosts)
        fingerprints = {host.fingerprint for host in hosts}
        for removed in self._transports.keys() - fingerprints:
            for transport in self._transports.pop(removed):
                transport.abort()

    @web.middleware
    async def _require_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Find the host that sent a request, in the registry as it is now."""
        connection = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        host = self._registry.by_fingerprint(peer_fingerprint(connection) or "")
        if host is None:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the host is no longer paired")
        request[_PEER] = host
        return await handler(request)

    def _get_config(self) -> Config:
        """The configuration with the limits of this server."""
        config = self._config()
        limits = msgspec.structs.replace(config.limits, max_connections=MAX_CONNECTIONS)
        server = msgspec.structs.replace(config.server, max_body_bytes=MAX_BODY_BYTES)
        return msgspec.structs.replace(config, limits=limits, server=server)


class _PendingProtocol(asyncio.Protocol):
    """The protocol of a connection until its certificate is known.

    Attributes:
        unpaired: the streams of a connection without a certificate.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self.unpaired: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        protocol = self._server.protocol_for(transport)
        if protocol is None:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(limit=UNPAIRED_BYTES)
            protocol = asyncio.StreamReaderProtocol(reader)
            self.unpaired = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until its socket is closed."""
    if not writer.is_closing():
        # asyncio's TLS transport cannot be aborted anymore once it has been closed twice.
        writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def websocket(request: web.Request) -> AsyncIterator[web.WebSocketResponse]:
    """Accept a WebSocket of a paired host. Messages may be large; the handler returns what this yields."""
    response = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE_BYTES)
    await response.prepare(request)
    if (connection := connection_of(request)) is not None:
        connection.upgrade(_InUse())
    try:
        yield response
    finally:
        await response.close()


class _InUse:
    """A connection that is never closed to make room for others."""

    is_idle = False
