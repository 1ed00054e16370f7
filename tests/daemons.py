"""Running real daemons for tests."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

START_SECONDS = 60
STOP_SECONDS = 60


@dataclass
class Daemon:
    """A running daemon, and every log line it has written so far."""

    process: subprocess.Popen[str]
    home: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return str(self.wait_for("serving")["endpoints"][0])

    @property
    def socket(self) -> Path:
        return self.home / "run" / "admin.sock"

    def wait_for(self, event: str, *, count: int = 1, timeout: float = START_SECONDS) -> dict[str, Any]:
        """The `count`th log line with this event, waited for if need be."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log if line["event"] == event]

        with self.news:
            arrived = self.news.wait_for(lambda: len(found()) >= count or self._ended(), timeout)
            lines = found()
        assert arrived, f"no {event!r} within {timeout} s: {self.log}"
        assert len(lines) >= count, f"the daemon ended without {event!r}: {self.log}"
        return lines[count - 1]

    def admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One admin request: status and parsed answer (a list of objects for JSON lines)."""
        with self._asked(method, path, body) as answer:
            text = answer.read()
        if answer.getheader("Content-Type") == "application/jsonl":
            return answer.status, [json.loads(line) for line in text.splitlines()]
        return answer.status, json.loads(text)

    @contextlib.contextmanager
    def following(self, method: str, path: str, body: object = None) -> Iterator[Iterator[dict[str, Any]]]:
        """One admin request whose answer is JSON lines, each as it comes."""
        with self._asked(method, path, body) as answer:
            assert 200 == answer.status
            yield (json.loads(line) for line in answer)

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, body: object) -> Iterator[HTTPResponse]:
        connection = UnixConnection(self.socket)
        headers = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def listen(self) -> None:
        """Take log lines in until the daemon ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.news:
                self.log.append(_parsed(line))
                self.news.notify_all()
        with self.news:
            self.news.notify_all()

    def _ended(self) -> bool:
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


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a daemon or CLI that must see this home and nothing of the user's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OSAURUS_", "HF_"))}
    return {**inherited, "OSAURUS_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), **extra}


@contextlib.contextmanager
def running(home: Path, *arguments: str, **env: str) -> Iterator[Daemon]:
    """A daemon on a free port that serves by the time the block begins and is gone when it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "osaurusd", "serve", "--port", "0", *arguments],
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon = Daemon(process, home)
    listener = threading.Thread(target=daemon.listen)
    listener.start()
    try:
        daemon.wait_for("serving")
        yield daemon
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.stop()
        process.kill()
        process.wait()
        listener.join()
        assert process.stderr is not None
        process.stderr.close()


def _parsed(line: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(line)
    except ValueError:
        return {"event": "plain text", "text": line}
    return parsed
