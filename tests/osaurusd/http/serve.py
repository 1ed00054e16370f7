"""Real servers for tests, and requests to them as exact bytes."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.server import HttpServer
from tests.streams import close

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Response:
    """A response, byte for byte; chunked bodies are as they were sent."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The object under `error`, after checking its format."""
        assert self.headers["Content-Type"].partition(";")[0] == "application/json", self
        assert list(self.json) == ["error"]
        error: dict[str, Any] = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        by_status = "invalid_request_error" if self.status < 500 else "server_error"
        assert error["type"] == {429: "rate_limit_error"}.get(self.status, by_status)
        assert error["message"]
        return error


class LiveServer:
    """An application on a listening socket, served as the daemon serves it."""

    def __init__(self, listener: socket.socket, server: HttpServer) -> None:
        self._server = server
        self._address = listener.getsockname()
        self._family = listener.family

    @property
    def connection_count(self) -> int:
        return self._server.connection_count

    @property
    def port(self) -> int:
        return int(self._address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        if self._family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(self._address)
        return await asyncio.open_connection("127.0.0.1", self.port)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection to the server while the block runs."""
        reader, writer = await self.connect()
        try:
            yield reader, writer
        finally:
            await close(writer)

    async def send(self, data: bytes) -> Response:
        """Send exactly these bytes, and return all that arrives until the server closes the connection."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            async with asyncio.timeout(60):
                return parse_response(await reader.read())

    async def request(
        self, method: str = "GET", path: str = "/", *headers: str, host: str = "localhost", body: bytes | None = None
    ) -> Response:
        """Send a request with these headers, and `Host`, `Connection` and `Content-Length`."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def close(self) -> None:
        """Shut down."""
        await self._server.close()

    async def wait_until_unused(self) -> None:
        """Wait until the server has no connections."""
        async with asyncio.timeout(60):
            while self.connection_count:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected(server, data=b""):
    """Open a connection, and send data over it; it is aborted at the end of the block, whatever is still to be sent."""
    async with server.connection() as (reader, writer):
        try:
            writer.write(data)
            await writer.drain()
            yield reader, writer
        finally:
            writer.transport.abort()


def parse_response(data: bytes) -> Response:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict(line.split(": ", 1) for line in lines)
    return Response(int(first.split(" ")[1]), headers, body)


def build_group(*routes: tuple[str, str, Handler]) -> RouteGroup:
    """Build a group with the default error format from (method, path, handler)."""
    return RouteGroup("test", [Route(*route) for route in routes], error_response)


def build_app(*routes: tuple[str, str, Handler], config: Config | None = None, **options: Any) -> web.Application:
    """Build an application with these routes; `options` are those of `create_app`."""
    fixed = config or Config()
    return create_app([build_group(*routes)], lambda: fixed, **options)


@contextlib.asynccontextmanager
async def serving(app, config: Config | Callable[[], Config] | None = None, listener: socket.socket | None = None):
    """Serve on this socket, or on a free port of 127.0.0.1, while the block runs."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    read = config if callable(config) else lambda: config or Config()
    server = HttpServer(app, read, error_response)
    await server.start([listener])
    try:
        yield LiveServer(listener, server)
    finally:
        await server.close()
        listener.close()
