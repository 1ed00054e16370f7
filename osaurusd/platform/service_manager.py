"""Cooperation with the service manager (launchd or systemd) that runs the daemon.

launchd restarts a failing process every ten seconds forever; systemd gives up eventually. Neither helps when, for
example, the port is in use. A supervised daemon therefore keeps running, reports the problem and retries.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from osaurusd.errors import OsaurusError

T = TypeVar("T")

SUPERVISED_VARIABLE = "OSAURUS_SUPERVISED"
"""Set by the program that starts the daemon and captures its standard error."""

MANAGERS = frozenset({"launchd", "systemd"})
"""Values of `OSAURUS_SUPERVISED` that mean the daemon is restarted when it exits. `osaurusctl up` sets another one."""

CRASH_LOG_BYTES = 1024 * 1024
SOFT_FILE_LIMIT = 8192

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 15.0


def is_supervised(env: Mapping[str, str] = os.environ) -> bool:
    """Whether a service manager started this process."""
    return env.get(SUPERVISED_VARIABLE) in MANAGERS


def captures_stderr(env: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is captured as a crash log, so that log records do not belong there."""
    return SUPERVISED_VARIABLE in env


def retry_delays() -> Iterator[float]:
    """Seconds to wait before each retry: exponential backoff up to a limit. Endless."""
    for exponent in itertools.count():
        yield min(FIRST_RETRY_SECONDS * 2 ** min(exponent, 16), MAX_RETRY_SECONDS)


def retry_until_success(attempt: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Call `attempt` until it succeeds. A reason that repeats is printed only once."""
    last_reason = None
    for delay in retry_delays():
        try:
            return attempt()
        except (OsaurusError, OSError) as error:
            reason = str(error)
            if reason != last_reason:
                print_status(f"{reason}; retrying")
                last_reason = reason
        sleep(delay)
    raise AssertionError("retry_delays() is endless")


def print_status(text: str) -> None:
    """Print to standard error, for use before logging is configured."""
    with contextlib.suppress(OSError):
        print(f"osaurusd: {text}", file=sys.stderr, flush=True)  # noqa: T201  there is no log yet


def raise_file_limit() -> None:
    """Raise the soft limit of open files. launchd's default of 256 is too low for clients and workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOFT_FILE_LIMIT if hard == resource.RLIM_INFINITY else min(SOFT_FILE_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def rotate_crash_log(descriptor: int, limit: int = CRASH_LOG_BYTES) -> None:
    """Rotate the file behind an output descriptor if it is larger than `limit` bytes. One old copy is kept.

    The file is copied and truncated, not renamed, because the service manager keeps its own descriptor open.
    """
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size <= limit:
            return
        if (path := _path_of(descriptor)) is not None:
            copy = path.with_name(path.name + ".1")
            shutil.copyfile(path, copy)
            copy.chmod(0o600)
        os.ftruncate(descriptor, 0)


def notify(*fields: str, env: Mapping[str, str] = os.environ) -> None:
    """Send fields such as `READY=1` or `STATUS=...` to systemd if it listens (sd_notify(3)). Errors are ignored."""
    if address := env.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send("\n".join(fields).encode())


def watchdog_interval(env: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between watchdog notifications: half of systemd's timeout. None without a watchdog."""
    microseconds = env.get("WATCHDOG_USEC", "")
    for_this_process = env.get("WATCHDOG_PID") in (None, str(os.getpid()))
    if not for_this_process or not microseconds.isdecimal() or not int(microseconds):
        return None
    return int(microseconds) / 2_000_000


async def feed_watchdog() -> None:
    """Notify systemd's watchdog for as long as the event loop runs."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def _path_of(descriptor: int) -> Path | None:
    """The path of an open file, if the system reveals it and it still refers to that file."""
    link = Path(f"/proc/self/fd/{descriptor}")
    path = link.readlink() if link.is_symlink() else _path_on_macos(descriptor)
    with contextlib.suppress(OSError):
        if path is not None and os.path.samestat(path.stat(), os.fstat(descriptor)):
            return path
    return None


def _path_on_macos(descriptor: int) -> Path | None:
    if sys.platform != "darwin":
        return None
    return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))


class StopRequest:
    """A signal or a client requests a graceful shutdown; a second signal makes it immediate."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.immediate = asyncio.Event()
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def ignore_signals(self) -> None:
        """Ignore further signals; call it when nothing is left to do but exit.

        A signal that arrives after the event loop is closed would otherwise replace the exit status.
        """
        for number in STOP_SIGNALS:
            # The loop would restore the default action when it is closed.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self) -> None:
        if self.requested.is_set():
            self.immediate.set()
        self.requested.set()
