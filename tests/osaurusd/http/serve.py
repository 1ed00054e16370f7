"""Real servers for tests, and requests to them as exact bytes."""

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from osaurusd.http.app import open_app


@dataclass
class Answer:
    """An answer, byte for byte; chunked bodies are as they were sent."""

    status: int
    headers: CIMultiDict
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The object under `error`, whose shape is checked on the way."""
        assert self.headers["Content-Type"].partition(";")[0] == "application/json", self
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        by_status = "invalid_request_error" if self.status < 500 else "server_error"
        assert error["type"] == {429: "rate_limit_error"}.get(self.status, by_status)
        assert error["message"]
        return error


class Server:
    """An application on a listening socket, run as the daemon runs it."""

    def __init__(self, listener: socket.socket, runner: web.AppRunner) -> None:
        self._runner = runner
        self._address = listener.getsockname()
        self._family = listener.family

    def connections(self) -> list[web.RequestHandler]:
        """The connections that the server has."""
        return self._runner.server.connections if self._runner.server else []

    @property
    def port(self) -> int:
        return self._address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self):
        """Streams to the server."""
        if self._family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(self._address)
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> Answer:
        """The answer to exactly these bytes; the connection is closed by the server or after ten seconds."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                return parsed(await reader.read())
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, method="GET", path="/", *headers, host="localhost", body=None) -> Answer:
        """The answer to a request with exactly these headers, `Host`, `Connection` and `Content-Length` aside."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))


def parsed(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split(" ")[1]), headers, body)


@contextlib.asynccontextmanager
async def serving(app: web.Application, listener: socket.socket | None = None):
    """Serve on this socket, or on a free port of 127.0.0.1, while the block runs."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    runner = await open_app(app, [listener])
    try:
        yield Server(listener, runner)
    finally:
        await runner.cleanup()
        listener.close()
