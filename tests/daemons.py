"""Run real daemons in tests."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from osaurusctl.cli import root

# They only bound what hangs: a busy machine takes long for everything.
START_SECONDS = 120
STOP_SECONDS = 120
WAIT_SECONDS = 120

JSON_LINES = "application/jsonl"


@dataclass
class Daemon:
    """A running daemon and its log records so far."""

    process: subprocess.Popen[str]
    home: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    log_changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return str(self.wait_for("serving")["endpoints"][0])

    @property
    def socket(self) -> Path:
        return self.home / "run" / "admin.sock"

    def wait_for(self, event: str, *, count: int = 1, timeout: float = START_SECONDS, **fields: Any) -> dict[str, Any]:
        """Wait for the `count`th log record with this event and these fields, and return it."""
        with self.log_changed:
            in_time = self.log_changed.wait_for(
                lambda: len(self._records(event, fields)) >= count or self._exited(), timeout
            )
            records = self._records(event, fields)
        assert in_time, f"no {event!r} within {timeout} s: {self.log}"
        assert len(records) >= count, f"the daemon exited without {event!r}: {self.log}"
        return records[count - 1]

    def count(self, event: str, **fields: Any) -> int:
        """Return the number of log records with this event and these fields so far."""
        with self.log_changed:
            return len(self._records(event, fields))

    def admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send an admin request; return the status and the decoded body (a list of objects for JSON lines)."""
        with self._request(method, path, body) as response:
            text = response.read()
        if response.getheader("Content-Type") == JSON_LINES:
            return response.status, [json.loads(line) for line in text.splitlines()]
        return response.status, json.loads(text)

    @contextlib.contextmanager
    def following(self, method: str, path: str, body: object = None) -> Iterator[Iterator[dict[str, Any]]]:
        """Send an admin request and yield the JSON lines of its response as they arrive."""
        with self._request(method, path, body) as response:
            assert 200 == response.status
            yield (json.loads(line) for line in response)

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: object) -> Iterator[HTTPResponse]:
        connection = UnixConnection(self.socket)
        headers = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the daemon to exit, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def read_log(self) -> None:
        """Collect log records until the daemon exits."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.log_changed:
                self.log.append(_parse_record(line))
                self.log_changed.notify_all()
        with self.log_changed:
            self.log_changed.notify_all()

    def _records(self, event: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
        expected = {"event": event, **fields}
        return [record for record in self.log if expected.items() <= record.items()]

    def _exited(self) -> bool:
        return self.process.poll() is not None


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float = 120) -> None:
        super().__init__("osaurusd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition that has no event to wait for, such as the state of a process."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Stop a process while the block runs, for example a worker whose requests must not finish."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            os.kill(pid, signal.SIGCONT)


def free_port() -> int:
    """Return a port of 127.0.0.1 for a program that cannot choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def second_address() -> str:
    """Return another loopback address; 127.0.0.1 if this machine has only that, such as a Mac."""
    try:
        with socket.create_server(("127.0.0.2", 0)):
            return "127.0.0.2"
    except OSError:
        return "127.0.0.1"


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return an environment in which a daemon or CLI uses this home and no settings of the user."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OSAURUS_", "HF_"))}
    return {**inherited, "OSAURUS_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), **extra}


def invoke(env: dict[str, str], *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run `osaurusctl` in this environment without a new process, which is several times faster.

    Args:
        env: the environment.
        arguments: of `osaurusctl`.
        typed: its standard input.
    """
    hidden = dict.fromkeys(os.environ.keys() - env.keys())
    result = CliRunner().invoke(root, arguments, input=typed, env={**env, **hidden})
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def ctl(home: Path, *arguments: str, typed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `osaurusctl` with this home, as `invoke` does."""
    return invoke(environment(home, **env), *arguments, typed=typed)


@contextlib.contextmanager
def running(
    home: Path, *arguments: str, module: str = "osaurusd", prefix: Sequence[str] = (), **env: str
) -> Iterator[Daemon]:
    """Run a daemon on a free port while the block runs. It serves when the block begins.

    Args:
        home: the home directory.
        arguments: of `osaurusd serve`.
        module: the program, if not the daemon itself.
        prefix: a command that runs the daemon, such as `nsenter` with its arguments.
        env: variables in addition to `environment`.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", module, "serve", "--port", "0", *arguments],
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon = Daemon(process, home)
    reader = threading.Thread(target=daemon.read_log)
    reader.start()
    try:
        daemon.wait_for("serving")
        yield daemon
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.stop()
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def _parse_record(line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return {"event": "plain text", "text": line}
    return record
