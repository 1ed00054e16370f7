"""Start-up and footprint of our daemon."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import psutil

from tests import daemons
from tests.bench.models import STARTER
from tests.bench.parts import FEW_TOKENS, Figures
from tests.bench.servers import Server
from tests.daemons import Daemon

HELLO = [{"role": "user", "content": "Hello!"}]


def start(home: Path) -> Figures:
    """From spawn to the first 200 of /health, and the idle daemon's resident memory."""
    started = perf_counter()
    with daemons.running(home) as daemon:
        health = urlsplit(daemon.url)
        connection = HTTPConnection(health.hostname or "", health.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        ready = perf_counter() - started
        connection.close()
        daemon.admin("GET", "/v0/models")
        return {"ready": ready, "resident": psutil.Process(daemon.process.pid).memory_info().rss / 1e6}


def use(home: Path, daemon: Daemon) -> Figures:
    """A listing, and the first token of a model that is not in memory."""
    command = [sys.executable, "-m", "osaurusctl", "ls"]
    ls = _seconds(lambda: subprocess.run(command, env=daemons.environment(home), check=True, capture_output=True))
    address = urlsplit(daemon.url)
    server = Server(address.hostname or "", address.port or 0, STARTER)
    answer = asyncio.run(server.ask(HELLO, FEW_TOKENS))
    daemon.admin("POST", "/v0/unload", {"force": True})
    return {"ls": ls, "first token": answer.ttft}


def _seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
