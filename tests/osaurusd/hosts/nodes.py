"""Hosts of tests: the services of a daemon that concern other hosts, with real ports and files."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from osaurusd.config import Config, Distributed
from osaurusd.events import EventBus
from osaurusd.hosts.new_identity import create
from osaurusd.hosts.server import peer, websocket
from osaurusd.hosts.service import Hosts
from osaurusd.hosts.tls import pairing_context
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route
from osaurusd.wire.hosts import AddHostRequest


@dataclass
class Node:
    """A host."""

    hosts: Hosts
    state: Path
    bus: EventBus

    @property
    def port(self) -> int:
        return int(self.hosts.endpoints[0].rpartition(":")[2])

    @property
    def address(self) -> str:
        return self.hosts.endpoints[0].rpartition(":")[0]

    @property
    def url(self) -> str:
        return f"https://{self.hosts.endpoints[0]}"

    async def add(self, name: str, url: str, code: str, *, own_name: str = "a", **fields: Any) -> None:
        await self.hosts.add(AddHostRequest(name=name, url=url, code=code, own_name=own_name, **fields))

    async def started(self) -> None:
        """Wait until the host accepts others."""
        while not self.hosts.endpoints:  # noqa: ASYNC110  nothing else depends on this moment
            await asyncio.sleep(0.01)

    async def whoami(self, name: str) -> str:
        """Ask another host what it calls this one."""
        reply = await self.hosts.client.fetch(self.hosts.registry.get(name), "/v0/whoami", dict[str, str])
        return reply["name"]


@contextlib.asynccontextmanager
async def running(
    state: Path,
    address: str | None = "127.0.0.1",
    *,
    port: int = 0,
    lend_bytes: int = 0,
    routes: Sequence[Route] = (),
    has_identity: bool = True,
    **settings: Any,
) -> AsyncIterator[Node]:
    """Run a host while the block runs; without an address, it accepts no others."""
    await asyncio.to_thread(prepare, state, has_identity)
    listen = "" if address is None else f"{address}:{port}"
    config = Config(distributed=Distributed(listen=listen, lend_bytes=lend_bytes, **settings))
    bus = EventBus()
    hosts = Hosts(state, lambda: config, bus, lambda: lend_bytes)
    await hosts.start([Route("GET", "/v0/whoami", whoami), Route("GET", "/v0/echo", echo), *routes])
    try:
        yield Node(hosts, state, bus)
    finally:
        await hosts.close()


def prepare(state: Path, has_identity: bool) -> None:
    """Create the folder of a host, with an identity: to create that itself, the host would need a process."""
    state.mkdir(exist_ok=True)
    if has_identity and not (state / "host.pem").exists():
        (state / "host.pem").write_bytes(identity(state.name))


@functools.cache
def identity(_name: str) -> bytes:
    return create()


async def pair(a: Node, b: Node) -> None:
    """Pair two hosts, which call each other `a` and `b`."""
    await a.add("b", b.url, (await b.hosts.offer_code()).code)


async def whoami(request: web.Request) -> web.Response:
    return json_response({"name": peer(request).name})


async def echo(request: web.Request) -> web.StreamResponse:
    async with websocket(request) as connection:
        async for message in connection:
            await connection.send_bytes(message.data)
        return connection


@dataclass
class UnpairedClient:
    """A connection that is not one of a paired host."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> bytes:
        """Return everything until the connection is closed."""
        received = b""
        with contextlib.suppress(OSError, ssl.SSLError):
            while chunk := await self.reader.read(65536):
                received += chunk
        return received


@contextlib.asynccontextmanager
async def unpaired_client(
    node: Node, context: ssl.SSLContext | None = None, *, tls: bool = True
) -> AsyncIterator[UnpairedClient]:
    """Connect without a certificate, or with another context, or without TLS."""
    chosen = (context or pairing_context()) if tls else None
    reader, writer = await asyncio.open_connection(
        node.address, node.port, ssl=chosen, server_hostname="" if tls else None
    )
    try:
        yield UnpairedClient(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def connect(node: Node) -> socket.socket:
    """Open a TCP connection."""
    return socket.create_connection((node.address, node.port))
