"""What is compared: our daemon, `mlx_lm.server`, and mlx_lm without a server, all up at once on one model."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench import children, client
from tests.bench.client import Answer, Call
from tests.bench.models import Model
from tests.bench.prompts import Messages
from tests.daemons import Daemon

START_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A server that has a model in memory and calls it `model`."""

    host: str
    port: int
    model: str

    async def call(self, messages: Messages, tokens: int, **fields: object) -> Call:
        """Send a greedy request for `tokens` tokens."""
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0, **fields}
        return await client.call(self.host, self.port, body)

    async def ask(self, messages: Messages, tokens: int, **fields: object) -> Answer:
        """The whole answer to a request."""
        call = await self.call(messages, tokens, **fields)
        try:
            return await call.answer()
        finally:
            call.hang_up()


class Raw:
    """mlx_lm's `stream_generate` in a process of its own."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def rate(self, prompt: list[int], tokens: int) -> float:
        """Tokens a second of a greedy answer, from the first token to the last."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise client.Refused("the process of raw mlx_lm ended; its log says why")
        return float(json.loads(line))


@contextlib.contextmanager
def ours(daemon: Daemon, model: Model) -> Iterator[Server]:
    """Our daemon, with `model` in memory while the block runs."""
    status, answer = daemon.admin("POST", "/v0/load", {"model": model.name})
    if status != 200:
        raise client.Refused(str(answer))
    address = urlsplit(daemon.url)
    try:
        yield Server(address.hostname or "", address.port or 0, model.name)
    finally:
        # Ctrl-C ends the daemon too.
        with contextlib.suppress(OSError):
            daemon.admin("POST", "/v0/unload", {"force": True})


@contextlib.contextmanager
def theirs(home: Path, model: Model) -> Iterator[Server]:
    """`mlx_lm.server` on the same folder while the block runs."""
    port = _free_port()
    options = ["--model", str(home / "models" / model.name), "--port", str(port), "--log-level", "WARNING"]
    with children.running(home, "mlx_lm.log", "mlx_lm", "server", *options) as child:
        _wait_until_healthy(child, port)
        yield Server("127.0.0.1", port, "default_model")


@contextlib.contextmanager
def raw(home: Path, model: Model) -> Iterator[Raw]:
    """mlx_lm in a process of its own on the same folder while the block runs."""
    with children.running(home, "raw.log", "tests.bench.raw", str(home / "models" / model.name)) as child:
        yield Raw(child)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(child: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError), contextlib.closing(HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise client.Refused(f"mlx_lm.server did not start within {START_SECONDS:g} s; its log says why")
