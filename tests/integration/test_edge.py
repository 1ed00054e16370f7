"""The real daemon and its worker with misbehaving clients, over TCP and over the Unix socket."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from openai import OpenAI

from tests.daemons import Daemon, wait_until
from tests.models import running_tiny

WAIT_SECONDS = 60.0
CONFIG = """
[server]
max_body_bytes = 1000000
[limits]
max_connections = 40
header_seconds = 0.5
body_stall_seconds = 0.5
reader_stall_seconds = 0.5
"""

NO_END_TOKEN = {"0": -100, "2": -100}
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    with running_tiny(module_home, tiny_tokenizer, CONFIG) as daemon:
        yield daemon
        assert [] == [line for line in daemon.log if line.get("level") == "error" or "exception" in line]


@pytest.fixture(params=["tcp", "unix"])
def connect(request: pytest.FixtureRequest, daemon: Daemon):
    """Opens connections, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def connect(receive_bytes: int | None = None) -> socket.socket:
            family = socket.AF_INET if request.param == "tcp" else socket.AF_UNIX
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.settimeout(WAIT_SECONDS)
            if receive_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            address = urlsplit(daemon.url)
            connection.connect((address.hostname, address.port) if request.param == "tcp" else str(daemon.socket))
            return connection

        yield connect


def read_all(connection: socket.socket) -> bytes:
    """Read until the daemon closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def send(connection: socket.socket, data: bytes) -> tuple[int, str | None]:
    """Send bytes, and return status and error code of the response, after which the daemon closes the connection."""
    connection.sendall(data)
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    is_json = b"application/json" in head
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"] if is_json else None


def descriptors(daemon: Daemon) -> int:
    return psutil.Process(daemon.process.pid).num_fds()


def still_serves(daemon: Daemon) -> bool:
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=3, timeout=WAIT_SECONDS) as client:
        response = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=3, logit_bias=NO_END_TOKEN
        )
    return 3 == response.usage.completion_tokens


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01\x02\x00" + bytes(100), (400, None)),
        (GET + b"Host: evil.example\r\n\r\n", (400, None)),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", (400, None)),
        (POST + b"Content-Length: 2000000\r\n\r\n{}", (413, "request_too_large")),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n{}", (415, "unsupported_encoding")),
        (GET + b"A: b\r\n" * 200 + b"\r\n", (431, "headers_too_large")),
        (GET, (408, "request_timeout")),
        (POST + b"Content-Length: 100\r\n\r\n{", (408, "request_timeout")),
    ],
)
def test_invalid_request_is_rejected_and_others_are_served(daemon: Daemon, connect, data: bytes, expected) -> None:
    assert expected == send(connect(), data)
    assert still_serves(daemon)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "logit_bias": NO_END_TOKEN}


@pytest.mark.parametrize("stream", [True, False])
def test_half_closed_client_receives_its_response(connect, stream: bool) -> None:
    body = json.dumps({**CHAT, "stream": stream}).encode()
    connection = connect()
    connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    connection.shutdown(socket.SHUT_WR)
    response = read_all(connection)
    assert b"HTTP/1.1 200" in response
    assert b'"finish_reason":"length"' in response


def test_http_10_connection_ends_with_the_stream(connect) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n"
    connection = connect()
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert read_all(connection).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("base", ["//v1/", "//", "/v1//"])
def test_base_url_may_have_extra_slashes(daemon: Daemon, base: str) -> None:
    # On a busy machine, the client may pause between head and body for longer than is permitted here.
    with OpenAI(base_url=daemon.url + base, api_key="x", max_retries=3) as client:
        assert 3 == client.chat.completions.create(**CHAT).usage.completion_tokens


@pytest.fixture
def short_idle_time(daemon: Daemon) -> Iterator[None]:
    """Only while a test runs that needs it: the clients of others may pause before they send a request."""
    config = daemon.home / "config.toml"
    config.write_text(CONFIG + "idle_seconds = 1\n")
    assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
    yield
    config.write_text(CONFIG)
    assert 200 == daemon.admin("POST", "/v0/reload", {})[0]


@pytest.mark.usefixtures("short_idle_time")
def test_idle_connections_do_not_accumulate(daemon: Daemon, connect) -> None:
    before = descriptors(daemon)
    connections = [connect() for _ in range(100)]
    for connection in connections[::2]:
        # The daemon may have closed it to make room.
        with contextlib.suppress(ConnectionError):
            connection.sendall(GET)
    assert still_serves(daemon)
    assert descriptors(daemon) <= before + 80
    wait_until(lambda: descriptors(daemon) <= before)


# A Unix socket buffers little, so that the stream stalls after a few tokens.
@pytest.mark.parametrize("connect", ["unix"], indirect=True)
def test_stalled_reader_is_disconnected_and_others_are_served(daemon: Daemon, connect) -> None:
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "n": 8,
        "max_tokens": 1900,
        "logprobs": True,
        "top_logprobs": 20,
        "logit_bias": NO_END_TOKEN,
        "stream": True,
    }
    body = json.dumps(chat).encode()
    aborted = sum(line["event"] == "client stopped reading; connection aborted" for line in daemon.log)
    connection = connect(4096)
    connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    assert still_serves(daemon)
    daemon.wait_for("client stopped reading; connection aborted", count=aborted + 1)
    wait_until(lambda: all(worker["in_flight"] == 0 for worker in daemon.admin("GET", "/v0/workers")[1]))
    assert still_serves(daemon)
