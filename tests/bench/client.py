"""The client that measures: it notes when bytes arrive, and reads them only afterwards.

HTTP/1.0, so that a reply is its bytes until the connection ends, from either server.
"""

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

PATIENCE_SECONDS = 120.0

Packets = list[tuple[float, bytes]]


class Refused(Exception):
    """The server answered with an error."""


@dataclass(frozen=True)
class Answer:
    """What a stream brought. Times are seconds of `perf_counter`.

    Attributes:
        sent: when the client began to connect.
        arrivals: when each piece of text arrived.
        usage: the server's count of tokens, once the stream is complete.
    """

    sent: float
    arrivals: list[float]
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.arrivals[0] - self.sent

    @property
    def tokens(self) -> int:
        return int(self.usage["completion_tokens"])

    @property
    def rate(self) -> float:
        """Tokens a second, from the first to the last."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])


class Call(asyncio.Protocol):
    """A streamed chat that is under way."""

    def __init__(self, sent: float, request: bytes) -> None:
        self.sent = sent
        self._request = request
        self._packets: Packets = []
        self._transport: asyncio.Transport | None = None
        self._begun = asyncio.Event()
        self._ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._packets.append((perf_counter(), data))
        # Headers, and comments that keep the connection alive, are no text.
        if not self._begun.is_set() and b'"content"' in data:
            self._begun.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._begun.set()

    async def begun(self) -> None:
        """Wait for the first chunk, or the end."""
        await _in_time(self._begun)

    async def answer(self) -> Answer:
        """The whole answer.

        Raises:
            Refused: an error came instead of it or in it.
        """
        await _in_time(self._ended)
        answer = self.so_far()
        if not answer.usage:
            raise Refused("the stream ended before it was complete")
        return answer

    def so_far(self) -> Answer:
        """What has come by now; whole chunks only."""
        arrivals: list[float] = []
        usage: dict[str, Any] = {}
        for when, chunk in _chunks(self._packets):
            if "error" in chunk:
                raise Refused(str(chunk["error"]))
            usage = chunk.get("usage") or usage
            if any(choice["delta"].get("content") for choice in chunk.get("choices", [])):
                arrivals.append(when)
        return Answer(self.sent, arrivals, usage)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def call(host: str, port: int, body: dict[str, Any]) -> Call:
    """Send a chat request; the answer arrives while the loop runs."""
    content = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    # Before the connection is made: a server that is slow to accept makes its clients wait.
    sent = perf_counter()
    _, protocol = await asyncio.get_running_loop().create_connection(lambda: Call(sent, request), host, port)
    return protocol


async def _in_time(event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), PATIENCE_SECONDS)
    except TimeoutError:
        raise Refused(f"no answer within {PATIENCE_SECONDS:g} s") from None


def _chunks(packets: Packets) -> list[tuple[float, dict[str, Any]]]:
    """The JSON objects of a stream, each with the time when its last byte arrived."""
    found: list[tuple[float, dict[str, Any]]] = []
    head, rest = b"", b""
    for when, data in packets:
        rest += data
        if not head:
            head, separator, rest = rest.partition(b"\r\n\r\n")
            if not separator:
                head, rest = b"", head
                continue
        *lines, rest = rest.split(b"\n")
        payloads = (line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {"))
        found += ((when, json.loads(payload)) for payload in payloads)
    if head and b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise Refused(rest.decode(errors="replace"))
    return found
