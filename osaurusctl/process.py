"""The daemon as a process: starting it without a service manager, and seeing it end."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import osaurusd
from osaurusctl.client import Client
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusd.config import SHUTDOWN_GRACE_SECONDS
from osaurusd.wire.paths import Paths

_READY_POLL_SECONDS = 0.025
_LOCK_POLL_SECONDS = 0.05
_LINES_SHOWN = 10


def launch(paths: Paths, client: Client, options: Sequence[str], timeout: float) -> None:
    """Start a detached daemon and wait until it serves.

    Raises:
        CliError: it ended at once, or is not ready in time.
    """
    paths.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(paths.crash_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        start = os.fstat(log).st_size
        child = _spawn(options, log)
    finally:
        os.close(log)
    try:
        ready = _await_ready(child, client, timeout)
    except KeyboardInterrupt:
        child.terminate()
        raise
    if child.poll() is not None:
        raise CliError(_last_words(paths.crash_log, start, child.returncode), code="start_failed")
    if not ready:
        raise CliError(
            f"osaurusd (pid {child.pid}) is not ready after {timeout:g} s; it goes on starting",
            hint=f"`osaurusctl status` tells when it is ready, and {paths.log_file} what it does",
            code="start_timeout",
        )


def relaunch(paths: Paths, client: Client, timeout: float) -> None:
    """End a daemon that was started by `launch`, and start another one as the configuration says.

    Raises:
        CliError: it does not end, or its successor does not start.
    """
    with contextlib.suppress(DaemonNotRunning):
        client.shutdown()
    wait_until_gone(paths.lock, SHUTDOWN_GRACE_SECONDS + 10)
    launch(paths, client, [], timeout)


def holder(lock: Path) -> int | None:
    """The pid of the daemon that holds `lock`; 0 if it has not written it; None if no daemon does."""
    try:
        with lock.open(encoding="utf-8", errors="replace") as file:
            try:
                # Shared, so that two that look do not take each other for the daemon.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdecimal() else 0
    except FileNotFoundError:
        pass
    return None


def wait_until_gone(lock: Path, timeout: float, *, only: int | None = None) -> None:
    """Wait until no daemon holds `lock`, or another one than that with the pid `only`.

    Raises:
        CliError: one still does after `timeout` seconds; the message says which.
    """
    deadline = time.monotonic() + timeout
    while (pid := holder(lock)) is not None and only in (None, pid):
        if time.monotonic() >= deadline:
            message = f"osaurusd (pid {pid or 'unknown'}) still runs after {timeout:g} s"
            hint = f"`osaurusctl down` waits again, and `kill -9 {pid or 'PID'}` ends it at once"
            raise CliError(message, hint=hint, code="stop_timeout")
        time.sleep(_LOCK_POLL_SECONDS)


def _spawn(options: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_python(), "-m", "osaurusd", "serve", *options],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=os.environ | {"OSAURUS_SUPERVISED": "up"},
        start_new_session=True,
    )


def _python() -> list[str]:
    # `-m` looks in the current directory first; -P keeps modules that lie about there out of the daemon. A checkout
    # that is not installed can only be found that way.
    in_checkout = Path.cwd() == Path(osaurusd.__file__).resolve().parents[1]
    return [sys.executable] if in_checkout else [sys.executable, "-P"]


def _await_ready(child: subprocess.Popen[bytes], client: Client, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while child.poll() is None and time.monotonic() < deadline:
        if client.healthy():
            return True
        time.sleep(_READY_POLL_SECONDS)
    return False


def _last_words(log: Path, start: int, code: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join([f"osaurusd ended while starting (exit code {code})", *lines[-_LINES_SHOWN:]])
