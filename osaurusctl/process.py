"""The daemon process: start it without a service manager, and wait until it exits."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import osaurusd
from osaurusctl.client import Client
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusd.config import SHUTDOWN_GRACE_SECONDS
from osaurusd.wire.paths import Paths

STOP_TIMEOUT_SECONDS = int(SHUTDOWN_GRACE_SECONDS) + 10
"""Running requests get the grace period; the rest is for the shutdown itself."""

_READY_POLL_SECONDS = 0.025
_LOCK_POLL_SECONDS = 0.05
_STDERR_LINES = 10


def start_daemon(paths: Paths, client: Client, options: Sequence[str], timeout: float) -> None:
    """Start a detached daemon and wait until it serves.

    Raises:
        CliError: the daemon exited, or was not ready in time.
    """
    paths.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    stderr = os.open(paths.crash_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        start = os.fstat(stderr).st_size
        child = _spawn(options, stderr)
    finally:
        os.close(stderr)
    try:
        ready = _wait_until_ready(child, client, timeout)
    except KeyboardInterrupt:
        child.terminate()
        raise
    if child.poll() is not None:
        raise CliError(_startup_failure(paths.crash_log, start, child.returncode), code="start_failed")
    if not ready:
        raise CliError(
            f"osaurusd (pid {child.pid}) is not ready after {timeout:g} s; it is still starting",
            hint=f'run "osaurusctl status" to check again; the log is {paths.log_file}',
            code="start_timeout",
        )


def restart_daemon(paths: Paths, client: Client, timeout: float) -> None:
    """Stop the daemon that `start_daemon` started, and start a new one with the options of the configuration.

    Raises:
        CliError: the daemon did not exit, or its successor did not start.
    """
    with contextlib.suppress(DaemonNotRunning):
        client.shutdown()
    wait_until_stopped(paths.lock, STOP_TIMEOUT_SECONDS)
    start_daemon(paths, client, [], timeout)


def exec_daemon(options: Sequence[str]) -> NoReturn:
    """Replace this process by a daemon in the foreground."""
    command = [*_python_command(), "-m", "osaurusd", "serve", *options]
    os.execv(command[0], command)


def lock_owner(lock: Path) -> int | None:
    """Return the pid of the daemon that holds `lock`, 0 if it is not written yet, None if no daemon runs."""
    try:
        with lock.open(encoding="utf-8", errors="replace") as file:
            try:
                # A shared lock: two CLIs that check at the same time must not mistake each other for the daemon.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdecimal() else 0
    except FileNotFoundError:
        pass
    return None


def wait_until_stopped(lock: Path, timeout: float, *, pid: int | None = None) -> None:
    """Wait until no daemon holds `lock`; with `pid`, until that daemon no longer does.

    Raises:
        CliError: the daemon still runs after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while (owner := lock_owner(lock)) is not None and pid in (None, owner):
        if time.monotonic() >= deadline:
            raise CliError(
                f"osaurusd (pid {owner or 'unknown'}) is still running after {timeout:g} s",
                hint=f'run "osaurusctl down" to keep waiting, or "kill -9 {owner or "PID"}" to kill it',
                code="stop_timeout",
            )
        time.sleep(_LOCK_POLL_SECONDS)


def _spawn(options: Sequence[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_python_command(), "-m", "osaurusd", "serve", *options],
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        env=os.environ | {"OSAURUS_SUPERVISED": "up"},
        start_new_session=True,
    )


def _python_command() -> list[str]:
    # `-m` searches the current directory first, and -P prevents that: a stray module there must not be imported.
    # A checkout that is not installed can only be found through the current directory.
    in_checkout = Path.cwd() == Path(osaurusd.__file__).resolve().parents[1]
    return [sys.executable] if in_checkout else [sys.executable, "-P"]


def _wait_until_ready(child: subprocess.Popen[bytes], client: Client, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while child.poll() is None and time.monotonic() < deadline:
        if client.is_healthy():
            return True
        time.sleep(_READY_POLL_SECONDS)
    return False


def _startup_failure(log: Path, start: int, exit_code: int) -> str:
    """Return the error message with the end of standard error, read from the offset `start`."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join([f"osaurusd exited during startup with code {exit_code}", *lines[-_STDERR_LINES:]])
