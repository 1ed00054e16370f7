"""How long a large request body blocks the daemon's event loop, as another client sees it.

While one connection sends the body, another sends `GET /health` back to back. The responses wait for the event loop, so
the longest response time is about the longest time that the body blocks it. This includes waits for the GIL while a
thread converts the body. The client shares the processor with the daemon, so it keeps its own work small: it encodes a
body in advance, sends it at once from a thread, and hardly looks at the responses to `GET /health`.
"""

import json
import socket
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from time import perf_counter
from typing import Any

from osaurusd.config import Input
from tests.bench.client import TIMEOUT_SECONDS, MeasurementError
from tests.bench.measurements import Figures
from tests.bench.prompts import user_message
from tests.bench.servers import Server

BODY_BYTES = 4_000_000
REPETITIONS = 3
# The daemon frees the objects of a request after its response.
SETTLE_SECONDS = 0.1

HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH_STATUS, HEALTH_END = b"HTTP/1.1 200 ", b"}"

LIMITS = Input()
"""The limits of the daemon, whose configuration is the default one."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Body:
    """A request body of about `BODY_BYTES`, which the daemon processes completely but a text model rejects.

    Attributes:
        path: where to send it.
        make: returns its fields besides the model.
        error: a part of the expected error message.
    """

    path: str
    make: Callable[[], Fields]
    error: str = "this model's context length"

    def encode(self, model: str) -> bytes:
        return encode({"model": model, **self.make()})


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def words(size: int) -> str:
    """Return a text of this many characters."""
    return ("hello world " * size)[:size]


def long_text() -> Fields:
    return {"messages": [user_message(words(BODY_BYTES))]}


def texts() -> list[Fields]:
    """Return as many messages as a request may have."""
    size = BODY_BYTES // LIMITS.max_messages - len(encode(user_message("")))
    return [user_message(words(size))] * LIMITS.max_messages


def image() -> Fields:
    url = f"data:image/png;base64,{'A' * BODY_BYTES}"
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def short_parts() -> Fields:
    return {"messages": grouped("user", "content", {"type": "text", "text": words(16)}, LIMITS.max_parts)}


def tool_uses() -> Fields:
    block = {"type": "tool_use", "id": "call", "name": "f", "input": {"a": 1}}
    calls = grouped("assistant", "content", block, LIMITS.max_tool_calls)
    return {"messages": [*calls, user_message("hello")], "max_tokens": 1}


def tool_calls() -> Fields:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    return {"messages": [*grouped("assistant", "tool_calls", call, LIMITS.max_tool_calls), user_message("hello")]}


def grouped(role: str, field: str, item: Fields, count: int) -> list[Fields]:
    """Return messages that fill a body with `count` equal items each."""
    message = {"role": role, field: [item] * count}
    return [message] * (BODY_BYTES // len(encode(message)))


BODIES: Mapping[str, Body] = {
    "chat, 1 text": Body("/v1/chat/completions", long_text),
    f"chat, {LIMITS.max_messages:,} messages": Body("/v1/chat/completions", lambda: {"messages": texts()}),
    "chat, 1 image": Body("/v1/chat/completions", image, error="does not accept images"),
    "chat, parts of 16 characters": Body("/v1/chat/completions", short_parts),
    f"responses, {LIMITS.max_messages:,} items": Body("/v1/responses", lambda: {"input": texts()}),
    "anthropic, tool uses": Body("/v1/messages", tool_uses),
    "ollama, tool calls": Body("/api/chat", tool_calls),
    "completions, 800,000 token IDs": Body("/v1/completions", lambda: {"prompt": [1234] * 800_000}),
}
"""The bodies by the names of their measurements."""


def measure(server: Server, body: Body) -> Figures:
    """Measure the longest response time to another client: during the body, and without it for as long.

    Both are in milliseconds, and medians of several repetitions.
    """
    content = body.encode(server.model)
    post(server, body, content)  # touches memory
    during, idle = [], []
    address = (server.host, server.port)
    with socket.create_connection(address, TIMEOUT_SECONDS) as connection, ThreadPoolExecutor(1) as executor:
        for _ in range(REPETITIONS):
            started = perf_counter()
            sending = executor.submit(post, server, body, content)
            longest = longest_response(connection, sending.done)
            sending.result()
            during.append(max(longest, longest_response(connection, passed(SETTLE_SECONDS))))
            idle.append(longest_response(connection, passed(perf_counter() - started)))
    return {"during": statistics.median(during) * 1e3, "idle": statistics.median(idle) * 1e3}


def post(server: Server, body: Body, content: bytes) -> None:
    """Send a body, and check that the daemon rejects it with the expected error."""
    with closing(HTTPConnection(server.host, server.port, timeout=TIMEOUT_SECONDS)) as connection:
        connection.request("POST", body.path, content, {"Content-Type": "application/json"})
        response = connection.getresponse().read().decode()
    if body.error not in response:
        raise MeasurementError(f"expected {body.error!r} in the response, not {response[:500]}")


def longest_response(connection: socket.socket, done: Callable[[], bool]) -> float:
    """Send health checks back to back until `done` returns true; return the longest response time in seconds."""
    longest = response_time(connection)
    while not done():
        longest = max(longest, response_time(connection))
    return longest


def response_time(connection: socket.socket) -> float:
    started = perf_counter()
    connection.sendall(HEALTH_REQUEST)
    response = b""
    while not response.endswith(HEALTH_END):
        data = connection.recv(4096)
        if not data:
            raise MeasurementError("the daemon closed the connection of the health checks")
        response += data
    seconds = perf_counter() - started
    if not response.startswith(HEALTH_STATUS):
        raise MeasurementError(f"a health check failed: {response.decode()}")
    return seconds


def passed(seconds: float) -> Callable[[], bool]:
    """Return a function that returns whether this time has passed."""
    end = perf_counter() + seconds
    return lambda: perf_counter() >= end
