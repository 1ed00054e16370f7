"""Misbehaving clients: they disconnect, send garbage, stall, and send too much."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.clients import WrongResponse
from tests.soak.evidence import CORRECT, DISCONNECTED
from tests.soak.models import UNBATCHED
from tests.soak.references import LONG, SHORT, References, random_text, user_message

OVERSIZED_BYTES = 30_000_000
"""More than the daemon's `server.max_body_bytes`."""

GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"\x00" * 300 + b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /models HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
    b"GET /models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
INVALID_JSON = (b"", b"{", b"nul", b"\xff\xfe", b'{"model": "a"} {', b"[" * 100_000, b'{"messages": 1e999}')
WRONG_TYPES: Sequence[Any] = (
    [],
    "hello",
    {"messages": "hello"},
    {"messages": [{"role": "user", "content": {"text": 1}}]},
    {"messages": [], "stream": "yes"},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"},
)

TIMEOUT_SECONDS = 300.0
MAX_PAUSE_SECONDS = 20.0
CHUNK_BYTES = 65536


@dataclass(frozen=True)
class Address:
    """The daemon's TCP address and Unix socket."""

    host: str
    port: int
    socket: Path


class MisbehavingClient:
    """Misbehaves in one way after another. Each method returns the result of its request.

    Args:
        address: where the daemon listens.
        references: requests with known responses.
        rng: chooses what to do.
    """

    def __init__(self, address: Address, references: References, rng: random.Random) -> None:
        self._address = address
        self._references = references
        self._rng = rng

    async def disconnect_in_headers(self, model: str) -> str:
        request = self._encode(self._random_request(model))
        return await self._send_and_disconnect(request[: self._rng.randrange(1, request.index(b"\r\n\r\n"))])

    async def disconnect_in_body(self, model: str) -> str:
        request = self._encode(self._random_request(model))
        body_start = request.index(b"\r\n\r\n") + 4
        return await self._send_and_disconnect(request[: self._rng.randrange(body_start, len(request))])

    async def disconnect_while_waiting(self, model: str) -> str:
        request = self._encode(self._random_request(model))
        return await self._send_and_disconnect(request, delay=self._rng.random())

    async def disconnect_in_stream(self, model: str) -> str:
        async with self._connect() as (reader, writer):
            writer.write(self._encode({**self._random_request(model), "stream": True}))
            for _ in range(self._rng.randrange(1, 60)):
                if not await reader.readline():
                    break
        return DISCONNECTED

    async def send_garbage(self, _model: str) -> str:
        response = await self._exchange(self._rng.choice(GARBAGE), half_close=True)
        if response and not is_rejection(response):
            raise WrongResponse(f"expected a rejection, got {response[:200]!r}")
        return CORRECT

    async def send_invalid_json(self, _model: str) -> str:
        return await self._expect_rejection(self._rng.choice(INVALID_JSON))

    async def send_wrong_types(self, model: str) -> str:
        body = self._rng.choice(WRONG_TYPES)
        body = {**body, "model": model} if isinstance(body, dict) else body
        return await self._expect_rejection(json.dumps(body).encode())

    async def send_too_much(self, _model: str) -> str:
        body = b'{"messages": [{"role": "user", "content": "' + b"x" * OVERSIZED_BYTES + b'"}]}'
        async with self._connect() as (reader, writer):
            sending = asyncio.create_task(send_in_chunks(writer, self._headers(len(body)) + body))
            with contextlib.suppress(ConnectionError):
                status = await reader.readline()
                if b" 413 " not in status:
                    raise WrongResponse(f"expected status 413, got {status!r}")
            sending.cancel()
            await asyncio.wait([sending])
        return CORRECT

    async def write_slowly(self, model: str) -> str:
        reference = self._rng.choice(self._references.greedy[model])
        request = self._encode({"model": model, **reference.fields})
        async with self._connect() as (reader, writer):
            size = len(request) // 6 + 1
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await writer.drain()
                await asyncio.sleep(self._rng.random())
            response = await reader.read()
        return check_chat_response(response, reference.texts[0])

    async def read_slowly(self, model: str) -> str:
        """Pause before reading a long stream. The daemon may cancel it with `slow_client`."""
        request = {
            "model": model,
            "messages": user_message(random_text(self._rng, SHORT)),
            "temperature": 1,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 20,
            # Socket buffers hold several megabytes; only long streams exceed them.
            "n": 1 if model == UNBATCHED else self._rng.choice([1, 8]),
            "max_tokens": self._rng.choice([100, 1500]),
        }
        tail = b""
        async with self._connect(receive_buffer_bytes=CHUNK_BYTES) as (reader, writer):
            writer.write(self._encode(request))
            await reader.readline()
            await asyncio.sleep(self._rng.uniform(0, MAX_PAUSE_SECONDS))
            while chunk := await reader.read(CHUNK_BYTES):
                tail = tail[-500:] + chunk
        return CORRECT if b"[DONE]" in tail else find_error_code(tail)

    async def follow_events_without_reading(self, _model: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self._address.socket)
        with contextlib.closing(writer):
            writer.write(b"GET /v0/events?follow=1 HTTP/1.1\r\nHost: osaurusd\r\nOsaurus-Api: 1\r\n\r\n")
            if b" 200 " not in await reader.readline():
                raise WrongResponse("the event stream did not start")
            await asyncio.sleep(MAX_PAUSE_SECONDS * self._rng.random())
        return DISCONNECTED

    def _random_request(self, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "messages": user_message(random_text(self._rng, self._rng.choice([SHORT, LONG]))),
            "temperature": 1,
            "n": self._rng.choice([1, 1, 2]),
            "max_tokens": 300,
        }

    def _headers(self, content_length: int) -> bytes:
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {self._address.host}:{self._address.port}",
            "Content-Type: application/json",
            "Connection: close",
            f"Content-Length: {content_length}",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def _encode(self, fields: dict[str, Any]) -> bytes:
        body = json.dumps(fields).encode()
        return self._headers(len(body)) + body

    @contextlib.asynccontextmanager
    async def _connect(
        self, receive_buffer_bytes: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        connection = socket.create_connection((self._address.host, self._address.port))
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                yield reader, writer
        finally:
            # Do not wait for unsent data.
            writer.transport.abort()

    async def _send_and_disconnect(self, data: bytes, delay: float = 0.0) -> str:
        async with self._connect() as (_, writer):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(delay)
        return DISCONNECTED

    async def _exchange(self, data: bytes, *, half_close: bool = False) -> bytes:
        async with self._connect() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                if half_close:
                    writer.write_eof()
                return await reader.read()
        return b""

    async def _expect_rejection(self, body: bytes) -> str:
        response = await self._exchange(self._headers(len(body)) + body)
        codes = ("invalid", "context", "image", "unsupported")
        if not is_rejection(response) or not find_error_code(response).startswith(codes):
            raise WrongResponse(f"expected a rejection of {body[:100]!r}, got {response[:300]!r}")
        return CORRECT


KINDS: Sequence[Callable[[MisbehavingClient, str], Awaitable[str]]] = (
    MisbehavingClient.disconnect_in_headers,
    MisbehavingClient.disconnect_in_body,
    MisbehavingClient.disconnect_while_waiting,
    MisbehavingClient.disconnect_in_stream,
    MisbehavingClient.send_garbage,
    MisbehavingClient.send_invalid_json,
    MisbehavingClient.send_wrong_types,
    MisbehavingClient.send_too_much,
    MisbehavingClient.write_slowly,
    MisbehavingClient.read_slowly,
    MisbehavingClient.follow_events_without_reading,
)


async def send_in_chunks(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send until everything is sent or the daemon closes the connection."""
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(data), CHUNK_BYTES):
            writer.write(data[start : start + CHUNK_BYTES])
            await writer.drain()


def is_rejection(response: bytes) -> bool:
    return response.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505"))


def check_chat_response(response: bytes, expected: str) -> str:
    """Return the result of a chat request that is not streamed."""
    if not response.startswith(b"HTTP/1.1 200 "):
        return find_error_code(response)
    content = json.loads(response.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
    if content != expected:
        raise WrongResponse(f"expected {expected!r}, got {content!r}")
    return CORRECT


def find_error_code(response: bytes) -> str:
    """Return the code of the error that ends a response or a stream."""
    _, separator, rest = response.rpartition(b'"code":"')
    if not separator:
        raise WrongResponse(f"expected an error, got {response[-200:]!r}")
    return rest.partition(b'"')[0].decode()
