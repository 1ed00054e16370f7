"""The measuring client. It records when bytes arrive and parses them after the measurement.

It uses HTTP/1.0, so that with both servers a response is everything up to the end of the connection.
"""

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

TIMEOUT_SECONDS = 120.0

Packets = list[tuple[float, bytes]]


class MeasurementError(Exception):
    """A measurement failed, for example because a server returned an error."""


@dataclass(frozen=True)
class Response:
    """A streamed response. Times are seconds of `perf_counter`.

    Attributes:
        sent: when the client started to connect.
        arrivals: when each piece of text arrived.
        usage: the server's token counts; empty until the stream is complete.
    """

    sent: float
    arrivals: list[float]
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        """Time to the first text, in seconds."""
        return self.arrivals[0] - self.sent

    @property
    def tokens(self) -> int:
        return int(self.usage["completion_tokens"])

    @property
    def rate(self) -> float:
        """Tokens per second, from the first to the last one."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])


class Stream(asyncio.Protocol):
    """A streamed request in progress. `sent` and `ended` are its start and end, in seconds of `perf_counter`."""

    def __init__(self, sent: float, request: bytes) -> None:
        self.sent = self.ended = sent
        self._request = request
        self._packets: Packets = []
        self._transport: asyncio.Transport | None = None
        self._started = asyncio.Event()
        self._ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._packets.append((perf_counter(), data))
        # Headers and keep-alive comments contain no text.
        if not self._started.is_set() and b'"content"' in data:
            self._started.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = perf_counter()
        self._ended.set()
        self._started.set()

    async def wait_for_start(self) -> None:
        """Wait for the first text or the end."""
        await wait_for(self._started)

    async def wait_for_end(self) -> None:
        await wait_for(self._ended)

    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """Return the events that have arrived so far, and when.

        Raises:
            MeasurementError: the server returned an error.
        """
        return parse_events(self._packets)

    async def response(self) -> Response:
        """Wait for the end and return the complete response.

        Raises:
            MeasurementError: the server returned an error or an incomplete stream.
        """
        await self.wait_for_end()
        response = self.partial_response()
        if not response.usage:
            raise MeasurementError("the stream is incomplete")
        return response

    def partial_response(self) -> Response:
        """Return the complete chunks that have arrived so far."""
        arrivals: list[float] = []
        usage: dict[str, Any] = {}
        for time, chunk in self.events():
            if "error" in chunk:
                raise MeasurementError(str(chunk["error"]))
            usage = chunk.get("usage") or usage
            if any(choice["delta"].get("content") for choice in chunk.get("choices", [])):
                arrivals.append(time)
        return Response(self.sent, arrivals, usage)

    def disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def start_stream(host: str, port: int, fields: dict[str, Any]) -> Stream:
    """Send a chat request. The response arrives while the event loop runs."""
    fields = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    return await start_request(host, port, "/v1/chat/completions", fields)


async def start_request(host: str, port: int, path: str, fields: dict[str, Any]) -> Stream:
    """Send a request whose response is a stream, which arrives while the event loop runs."""
    body = json.dumps(fields).encode()
    headers = f"POST {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    request = f"{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
    # Measured before connecting, because a server that accepts late makes its clients wait.
    sent = perf_counter()
    _, stream = await asyncio.get_running_loop().create_connection(lambda: Stream(sent, request), host, port)
    return stream


async def wait_for(event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), TIMEOUT_SECONDS)
    except TimeoutError:
        raise MeasurementError(f"no response within {TIMEOUT_SECONDS:g} s") from None


def parse_events(packets: Packets) -> list[tuple[float, dict[str, Any]]]:
    """Return the JSON objects of a stream, each with the time at which its last byte arrived."""
    events: list[tuple[float, dict[str, Any]]] = []
    headers, rest = b"", b""
    for time, data in packets:
        rest += data
        if not headers:
            headers, separator, rest = rest.partition(b"\r\n\r\n")
            if not separator:
                headers, rest = b"", headers
                continue
        *lines, rest = rest.split(b"\n")
        # Server-Sent Events have a prefix, lines of JSON have none.
        payloads = (line.removeprefix(b"data: ") for line in lines)
        events += ((time, json.loads(payload)) for payload in payloads if payload.startswith(b"{"))
    if headers and b" 200 " not in headers.split(b"\r\n", 1)[0]:
        raise MeasurementError(rest.decode(errors="replace"))
    return events
