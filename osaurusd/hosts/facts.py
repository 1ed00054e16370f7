"""What this host tells paired ones about itself, and what it does to have the connection measured."""

import asyncio
import platform
import time
from collections.abc import Callable

import msgspec
import psutil
from aiohttp import web

from osaurusd import addresses
from osaurusd.config import Config
from osaurusd.errors import InvalidRequest
from osaurusd.hosts import link, machine
from osaurusd.hosts.server import websocket
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.wire.hosts import ControlRoute, HostFacts, ListenReply, ListenRequest
from osaurusd.wire.installation import installation


class Facts:
    """Handlers of requests that paired hosts may send to find out about this one.

    Args:
        config: returns the configuration in force.
        lendable_bytes: returns how much memory models of other hosts may use now.
    """

    def __init__(self, config: Callable[[], Config], lendable_bytes: Callable[[], int]) -> None:
        self._config = config
        self._lendable_bytes = lendable_bytes
        self._probe: link.LinkProbe | None = None

    @property
    def routes(self) -> list[Route]:
        return [
            Route("GET", ControlRoute.FACTS, self.show),
            Route("GET", ControlRoute.ECHO, self.echo),
            Route("POST", ControlRoute.LISTEN, self.listen),
        ]

    def close(self) -> None:
        """Close the port of the last probe."""
        if self._probe is not None:
            self._probe.close()

    async def collect(self, own_address: str, peer_address: str) -> HostFacts:
        """Return the facts.

        Args:
            own_address, peer_address: of the connection to the host that asks.
        """
        distributed = self._config().distributed
        link_address = distributed.link_address or own_address
        facts = await asyncio.to_thread(_collect, self._lendable_bytes(), link_address, peer_address)
        return msgspec.structs.replace(facts, backend=distributed.backend, rdma_device=distributed.rdma_device)

    async def show(self, request: web.Request) -> web.Response:
        return json_response(await self.collect(*_connection_addresses(request)))

    async def echo(self, request: web.Request) -> web.StreamResponse:
        """Return each message, so that the other host can measure the time."""
        async with websocket(request) as connection:
            async for message in connection:
                await connection.send_bytes(message.data)
            return connection

    async def listen(self, request: web.Request) -> web.Response:
        """Accept a connection on the link address, or connect to that of the other host."""
        body = await read_json(request, ListenRequest)
        own_address, _ = _connection_addresses(request)
        link_address = _private_address(body.address or self._config().distributed.link_address or own_address)
        try:
            if body.connect_to is None:
                self.close()
                self._probe = await link.LinkProbe.open(link_address)
                return json_response(ListenReply(port=self._probe.port))
            await link.receive(link_address, *_private_endpoint(body.connect_to))
            return json_response(ListenReply())
        except OSError as error:
            return json_response(ListenReply(failure=link.describe(error)))


def _collect(lendable_bytes: int, link_address: str, peer_address: str) -> HostFacts:
    memory = psutil.virtual_memory()
    rdma, devices = machine.rdma()
    return HostFacts(
        installation=installation(),
        system=machine.system(),
        architecture=platform.machine(),
        chip=machine.chip(),
        time=time.time(),
        memory_bytes=memory.total,
        free_bytes=memory.available,
        lendable_bytes=lendable_bytes,
        link_address=link_address,
        peer_address=peer_address,
        rdma_devices=devices,
        rdma=rdma,
    )


def _connection_addresses(request: web.Request) -> tuple[str, str]:
    """Return this host's address of the connection, and the other one's."""
    if request.transport is None:
        raise ConnectionResetError("the connection is closed")
    own, other = (request.transport.get_extra_info(name) for name in ("sockname", "peername"))
    return own[0], other[0]


def _private_endpoint(text: str) -> tuple[str, int]:
    """Return address and port; a host must not have this one connect to others than link addresses."""
    try:
        address, port = addresses.parse_endpoint(text)
    except ValueError as error:
        raise InvalidRequest(f"`connect_to`: {error}", param="connect_to") from error
    return _private_address(str(address)), port


def _private_address(text: str) -> str:
    try:
        return str(addresses.parse_private_address(text))
    except ValueError as error:
        raise InvalidRequest(f"the link address is unusable: {error}") from error
