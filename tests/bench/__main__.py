"""Start-up and footprint: medians of several runs, with the spread, on the starter model.

Times are wall time in seconds on this machine as it is; compare figures of one run, not of two.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from osaurusd.worker.convert.run import import_model
from tests import daemons, starter_model

RUNS = 7
NAME = "smollm2-135m-instruct"


@contextlib.contextmanager
def home_with_starter_model() -> Iterator[Path]:
    """A home that has the starter model imported."""
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    model = home / "models" / NAME
    model.mkdir(parents=True)
    import_model(starter_model.fetch(), model, lambda *_: None)
    yield home
    shutil.rmtree(home)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def daemon_ready(home: Path) -> tuple[float, float]:
    """From spawn to the first 200 of /health, and the idle daemon's resident memory in MB."""
    started = time.perf_counter()
    with daemons.running(home) as daemon:
        health = urlsplit(daemon.url)
        connection = HTTPConnection(health.hostname or "", health.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        ready = time.perf_counter() - started
        connection.close()
        daemon.admin("GET", "/v0/models")
        return ready, psutil.Process(daemon.process.pid).memory_info().rss / 1e6


def ls(home: Path) -> float:
    command = [sys.executable, "-m", "osaurusctl", "ls"]
    return seconds(lambda: subprocess.run(command, env=daemons.environment(home), check=True, capture_output=True))


def first_token(daemon: daemons.Daemon) -> float:
    """From a request to a model that is not loaded to the first event of its stream."""
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port)
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello!"}], "stream": True, "max_tokens": 2}
    started = time.perf_counter()
    connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    first = answer.readline()
    assert answer.status == 200, first
    taken = time.perf_counter() - started
    connection.close()
    daemon.admin("POST", "/v0/unload", {"force": True})
    return taken


def show(what: str, figures: list[float], unit: str) -> None:
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    print(f"{what:42} {middle:8.2f} {unit:3} ({low:.2f} to {high:.2f}, {len(figures)} runs)")


def main() -> None:
    """Measure and print."""
    with home_with_starter_model() as home:
        starts = [daemon_ready(home) for _ in range(RUNS)]
        show("daemon start to health 200", [ready for ready, _ in starts], "s")
        show("idle daemon, resident", [megabytes for _, megabytes in starts], "MB")
        with daemons.running(home) as daemon:
            show("osaurusctl ls", [ls(home) for _ in range(RUNS)], "s")
            show("worker start to first token", [first_token(daemon) for _ in range(RUNS)], "s")


if __name__ == "__main__":
    main()
