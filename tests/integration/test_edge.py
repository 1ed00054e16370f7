"""The real daemon and its worker under clients that do as they please, over TCP and over the Unix socket."""

import contextlib
import gzip
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from openai import OpenAI

from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny

WAIT_SECONDS = 60.0
CONFIG = """
[server]
max_body_bytes = 1000000
[limits]
max_connections = 40
header_seconds = 0.5
body_stall_seconds = 0.5
idle_seconds = 1
reader_stall_seconds = 0.5
"""

NEVER_END = {"0": -100, "2": -100}
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def daemon(smollm_folder: Path) -> Iterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    make_tiny(home / "models" / "tiny", smollm_folder)
    (home / "config.toml").write_text(CONFIG)
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/load", {"model": "tiny"})
        yield daemon
        assert [] == [line for line in daemon.log if line.get("level") == "error" or "exception" in line]
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["tcp", "unix"])
def dial(request: pytest.FixtureRequest, daemon: Daemon):
    """Opens connections, which are closed in the end."""
    with contextlib.ExitStack() as stack:

        def dial(receive_bytes: int | None = None) -> socket.socket:
            family = socket.AF_INET if request.param == "tcp" else socket.AF_UNIX
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.settimeout(WAIT_SECONDS)
            if receive_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            address = urlsplit(daemon.url)
            connection.connect((address.hostname, address.port) if request.param == "tcp" else str(daemon.socket))
            return connection

        yield dial


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the daemon closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def exchanged(connection: socket.socket, data: bytes) -> tuple[int, str]:
    """The status and the error code of the answer to these bytes, after which the daemon closes."""
    connection.sendall(data)
    head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"]


def until(what, seconds: float = WAIT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def descriptors(daemon: Daemon) -> int:
    return psutil.Process(daemon.process.pid).num_fds()


def still_serves(daemon: Daemon) -> bool:
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=3, timeout=WAIT_SECONDS) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=3, logit_bias=NEVER_END
        )
    return 3 == answer.usage.completion_tokens


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01\x02\x00" + bytes(100), (400, "malformed_request")),
        (GET + b"Host: evil.example\r\n\r\n", (400, "malformed_request")),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", (400, "malformed_request")),
        (POST + b"Content-Length: 2000000\r\n\r\n{}", (413, "request_too_large")),
        (GET + b"A: b\r\n" * 200, (431, "headers_too_large")),
        (GET, (408, "request_timeout")),
        (POST + b"Content-Length: 100\r\n\r\n{", (408, "request_timeout")),
    ],
)
def test_what_is_wrong_is_refused_and_others_are_served(daemon: Daemon, dial, data: bytes, expected) -> None:
    assert expected == exchanged(dial(), data)
    assert still_serves(daemon)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A hundred times what a body may be, packed."""
    return gzip.compress(bytes(100_000_000))


def test_a_bomb_does_not_make_the_daemon_grow(daemon: Daemon, dial, bomb: bytes) -> None:
    head = POST + f"Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    process = psutil.Process(daemon.process.pid)
    before = process.memory_info().rss
    assert (413, "request_too_large") == exchanged(dial(), head + bomb)
    assert process.memory_info().rss - before < 20_000_000


def test_clients_that_do_nothing_do_not_pile_up(daemon: Daemon, dial) -> None:
    before = descriptors(daemon)
    crowd = [dial() for _ in range(100)]
    for connection in crowd[::2]:
        # It may have made room for a later one already.
        with contextlib.suppress(ConnectionError):
            connection.sendall(GET)
    assert still_serves(daemon)
    assert descriptors(daemon) <= before + 80
    until(lambda: descriptors(daemon) <= before)


# A Unix socket holds little, so that not much must be generated until its reader holds it up.
@pytest.mark.parametrize("dial", ["unix"], indirect=True)
def test_a_reader_that_stalls_is_dropped_and_others_are_served(daemon: Daemon, dial) -> None:
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "n": 8,
        "max_tokens": 1900,
        "logprobs": True,
        "top_logprobs": 20,
        "logit_bias": NEVER_END,
        "stream": True,
    }
    body = json.dumps(chat).encode()
    dropped = sum(line["event"] == "dropped a client that does not read" for line in daemon.log)
    connection = dial(4096)
    connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    assert still_serves(daemon)
    daemon.wait_for("dropped a client that does not read", count=dropped + 1)
    until(lambda: all(worker["in_flight"] == 0 for worker in daemon.admin("GET", "/v0/workers")[1]))
    assert still_serves(daemon)
