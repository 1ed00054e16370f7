"""The programs under test: osaurusd, `mlx_lm.server`, and mlx_lm without a server, running at the same time."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from osaurusd.pool.config import find_blas
from osaurusd.rpc.process import WORKER_ENVIRONMENT
from tests import daemons
from tests.bench.client import MeasurementError, Response, Stream, start_stream
from tests.bench.models import Model
from tests.bench.prompts import Messages
from tests.daemons import Daemon

START_SECONDS = 120.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A server that has a model loaded. `model` is the server's name for it, and `pid` its process if that matters."""

    host: str
    port: int
    model: str
    pid: int | None = None

    async def start_stream(self, messages: Messages, max_tokens: int, **fields: object) -> Stream:
        """Send a greedy request."""
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
        return await start_stream(self.host, self.port, body)

    async def request(self, messages: Messages, max_tokens: int, **fields: object) -> Response:
        """Send a greedy request and return the complete response."""
        stream = await self.start_stream(messages, max_tokens, **fields)
        try:
            return await stream.response()
        finally:
            stream.disconnect()


class RawProcess:
    """A process that runs `tests.bench.raw`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure_rate(self, prompt: list[int], tokens: int) -> float:
        """Return the tokens per second of greedy decoding."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise MeasurementError("the process that runs mlx_lm exited; see raw.log")
        return float(json.loads(line))


@contextlib.contextmanager
def osaurusd(daemon: Daemon, model: Model) -> Iterator[Server]:
    """Load the model in a daemon while the block runs."""
    status, body = daemon.admin("POST", "/v0/load", {"model": model.name})
    if status != 200:
        raise MeasurementError(str(body))
    address = urlsplit(daemon.url)
    try:
        yield Server(address.hostname or "", address.port or 0, model.name, daemon.process.pid)
    finally:
        # After Ctrl-C, the daemon has exited, too.
        with contextlib.suppress(OSError):
            daemon.admin("POST", "/v0/unload", {"force": True})


@contextlib.contextmanager
def mlx_lm_server(home: Path, model: Model) -> Iterator[Server]:
    """Run `mlx_lm.server` with the model while the block runs."""
    port = find_free_port()
    options = ["--model", str(home / "models" / model.name), "--port", str(port), "--log-level", "WARNING"]
    with run_module(home, "mlx_lm.log", "mlx_lm", "server", *options) as process:
        wait_until_healthy(process, port)
        yield Server("127.0.0.1", port, "default_model")


@contextlib.contextmanager
def mlx_lm_raw(home: Path, model: Model) -> Iterator[RawProcess]:
    """Run mlx_lm without a server while the block runs."""
    with run_module(home, "raw.log", "tests.bench.raw", str(home / "models" / model.name)) as process:
        yield RawProcess(process)


@contextlib.contextmanager
def run_module(home: Path, log: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m ARGUMENTS` in the environment of a worker while the block runs."""
    library = find_blas("auto")
    preload = {} if library is None else {"LD_PRELOAD": str(library)}
    with (home / log).open("a") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**daemons.environment(home), **WORKER_ENVIRONMENT, **preload},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # On Ctrl-C, only the benchmark gets the signal; it terminates its children.
            process_group=0,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.communicate()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError), contextlib.closing(HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise MeasurementError(f"mlx_lm.server did not start within {START_SECONDS:g} s; see mlx_lm.log")
