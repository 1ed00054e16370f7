"""Clients that do not ask as they should: they hang up, talk nonsense, dawdle, or send far too much."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.clients import WrongAnswer
from tests.soak.evidence import LEFT, RIGHT
from tests.soak.models import IN_TURN
from tests.soak.questions import LONG, SHORT, Known, chat, text

BODY_BYTES = 30_000_000
"""More than the soak's daemon takes."""

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
BAD_JSON = (b"", b"{", b"nul", b"\xff\xfe", b'{"model": "a"} {', b"[" * 100_000, b'{"messages": 1e999}')
WRONG_TYPES: Sequence[Any] = (
    [],
    "hello",
    {"messages": "hello"},
    {"messages": [{"role": "user", "content": {"text": 1}}]},
    {"messages": [], "stream": "yes"},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"},
)

PATIENCE_SECONDS = 300.0
MOST_PAUSE_SECONDS = 20.0


@dataclass(frozen=True)
class Address:
    """Where the daemon is: its port for clients, and its socket."""

    host: str
    port: int
    socket: Path


class Vandal:
    """Does one wrong thing after the other; each says how it ended.

    Args:
        address: of the daemon.
        known: questions whose answers are known.
        rng: chooses what to do.
    """

    def __init__(self, address: Address, known: Known, rng: random.Random) -> None:
        self._address = address
        self._known = known
        self._rng = rng

    async def leaves_in_headers(self, model: str) -> str:
        """Hangs up before its headers are complete."""
        request = self._request(self._asking(model))
        return await self._leave(request[: self._rng.randrange(1, request.index(b"\r\n\r\n"))])

    async def leaves_in_body(self, model: str) -> str:
        """Hangs up in the middle of its body."""
        request = self._request(self._asking(model))
        return await self._leave(request[: self._rng.randrange(request.index(b"\r\n\r\n") + 4, len(request))])

    async def leaves_waiting(self, model: str) -> str:
        """Hangs up while its answer is made."""
        return await self._leave(self._request(self._asking(model)), after=self._rng.random())

    async def leaves_in_stream(self, model: str) -> str:
        """Hangs up in the middle of a stream."""
        async with self._connected() as (reader, writer):
            writer.write(self._request({**self._asking(model), "stream": True}))
            for _ in range(self._rng.randrange(1, 60)):
                if not await reader.readline():
                    break
        return LEFT

    async def talks_garbage(self, _: str) -> str:
        """Sends what is no HTTP."""
        answer = await self._answer(self._rng.choice(GARBAGE), half_close=True)
        if answer and not _is_refusal(answer):
            raise WrongAnswer(f"{answer[:200]!r} where a refusal belongs")
        return RIGHT

    async def sends_bad_json(self, _: str) -> str:
        """Sends a body that is no JSON."""
        return await self._refused(self._rng.choice(BAD_JSON))

    async def sends_wrong_types(self, model: str) -> str:
        """Sends JSON that is no request."""
        body = self._rng.choice(WRONG_TYPES)
        return await self._refused(json.dumps({**body, "model": model} if isinstance(body, dict) else body).encode())

    async def sends_too_much(self, _: str) -> str:
        """Sends a body that is too large."""
        body = b'{"messages": [{"role": "user", "content": "' + b"x" * BODY_BYTES + b'"}]}'
        async with self._connected() as (reader, writer):
            sending = asyncio.create_task(_send(writer, self._head(len(body)) + body))
            with contextlib.suppress(ConnectionError):
                status = await reader.readline()
                if b" 413 " not in status:
                    raise WrongAnswer(f"{status!r} where 413 belongs")
            sending.cancel()
            await asyncio.wait([sending])
        return RIGHT

    async def writes_slowly(self, model: str) -> str:
        """Sends its request in pieces, with pauses between them."""
        question = self._rng.choice(self._known.greedy[model])
        request = self._request({"model": model, **question.fields})
        async with self._connected() as (reader, writer):
            step = len(request) // 6 + 1
            for at in range(0, len(request), step):
                writer.write(request[at : at + step])
                await writer.drain()
                await asyncio.sleep(self._rng.random())
            answer = await reader.read()
        return _checked(answer, question.answers[0])

    async def reads_slowly(self, model: str) -> str:
        """Lets a long stream wait before it reads it; one that leaves too much unread is given up."""
        asking = {
            "model": model,
            "messages": chat(text(self._rng, SHORT)),
            "temperature": 1,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 20,
            # What the system takes in between is some megabytes.
            "n": 1 if model == IN_TURN else self._rng.choice([1, 8]),
            "max_tokens": self._rng.choice([100, 1500]),
        }
        seen = b""
        async with self._connected(buffer_bytes=65536) as (reader, writer):
            writer.write(self._request(asking))
            await reader.readline()
            await asyncio.sleep(self._rng.uniform(0, MOST_PAUSE_SECONDS))
            while piece := await reader.read(65536):
                seen = seen[-500:] + piece
        return RIGHT if b"[DONE]" in seen else _code_in(seen)

    async def watches_and_hangs(self, _: str) -> str:
        """Follows events without reading them."""
        reader, writer = await asyncio.open_unix_connection(self._address.socket)
        with contextlib.closing(writer):
            writer.write(b"GET /v0/events?follow=1 HTTP/1.1\r\nHost: osaurusd\r\nOsaurus-Api: 1\r\n\r\n")
            if b" 200 " not in await reader.readline():
                raise WrongAnswer("events cannot be followed")
            await asyncio.sleep(20 * self._rng.random())
        return LEFT

    def _asking(self, model: str) -> dict[str, Any]:
        content = text(self._rng, self._rng.choice([SHORT, LONG]))
        return {
            "model": model,
            "messages": chat(content),
            "temperature": 1,
            "n": self._rng.choice([1, 1, 2]),
            "max_tokens": 300,
        }

    def _head(self, length: int) -> bytes:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address.host}:{self._address.port}\r\n"
        head += f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        return head.encode()

    def _request(self, fields: dict[str, Any]) -> bytes:
        body = json.dumps(fields).encode()
        return self._head(len(body)) + body

    @contextlib.asynccontextmanager
    async def _connected(
        self, buffer_bytes: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        plain = socket.create_connection((self._address.host, self._address.port))
        if buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        reader, writer = await asyncio.open_connection(sock=plain)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield reader, writer
        finally:
            # At once, whatever is still to be sent.
            writer.transport.abort()

    async def _leave(self, sent: bytes, after: float = 0.0) -> str:
        async with self._connected() as (_, writer):
            writer.write(sent)
            await writer.drain()
            await asyncio.sleep(after)
        return LEFT

    async def _answer(self, sent: bytes, *, half_close: bool = False) -> bytes:
        async with self._connected() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(sent)
                if half_close:
                    writer.write_eof()
                return await reader.read()
        return b""

    async def _refused(self, body: bytes) -> str:
        answer = await self._answer(self._head(len(body)) + body)
        if not _is_refusal(answer) or not _code_in(answer).startswith(("invalid", "context", "image", "unsupported")):
            raise WrongAnswer(f"{answer[:300]!r} where a refusal belongs, to {body[:100]!r}")
        return RIGHT


KINDS: Sequence[Callable[[Vandal, str], Awaitable[str]]] = (
    Vandal.leaves_in_headers,
    Vandal.leaves_in_body,
    Vandal.leaves_waiting,
    Vandal.leaves_in_stream,
    Vandal.talks_garbage,
    Vandal.sends_bad_json,
    Vandal.sends_wrong_types,
    Vandal.sends_too_much,
    Vandal.writes_slowly,
    Vandal.reads_slowly,
    Vandal.watches_and_hangs,
)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send piece by piece, until it is all sent or the other side has enough."""
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(data), 65536):
            writer.write(data[at : at + 65536])
            await writer.drain()


def _is_refusal(answer: bytes) -> bool:
    return answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505"))


def _checked(answer: bytes, expected: str) -> str:
    """The outcome of a plain chat."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        return _code_in(answer)
    said = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
    if said != expected:
        raise WrongAnswer(f"{said!r} where {expected!r} belongs")
    return RIGHT


def _code_in(answer: bytes) -> str:
    """The code of the error that an answer or a stream ends with."""
    _, found, rest = answer.rpartition(b'"code":"')
    if not found:
        raise WrongAnswer(f"it ended with {answer[-200:]!r}")
    return rest.partition(b'"')[0].decode()
