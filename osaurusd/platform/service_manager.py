"""Being run by a service manager: what it must be told, and what it must not have to do.

launchd starts a process that failed again and again, every ten seconds and for ever; systemd gives up at some point.
Neither helps against a port that somebody holds. So a supervised daemon stays, says what is amiss, and tries again.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import resource
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from osaurusd.errors import OsaurusError

T = TypeVar("T")

MANAGERS = frozenset({"launchd", "systemd"})
"""Values of `OSAURUS_SUPERVISED` that mean: whoever started us starts us again. `osaurusctl up` does not."""

CRASH_LOG_BYTES = 1024 * 1024
SOFT_FILE_LIMIT = 8192

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0


def supervised(env: Mapping[str, str] = os.environ) -> bool:
    """Whether a service manager started this process."""
    return env.get("OSAURUS_SUPERVISED") in MANAGERS


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: doubling, up to a limit."""
    for power in itertools.count():
        yield min(FIRST_PAUSE_SECONDS * 2 ** min(power, 16), LONGEST_PAUSE_SECONDS)


def persist(attempt: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Try until it works. Each reason is printed once, not once a try."""
    said = None
    for pause in pauses():
        try:
            return attempt()
        except (OsaurusError, OSError) as error:
            reason = str(error)
            if reason != said:
                say(f"{reason}; trying again")
                said = reason
        sleep(pause)
    raise AssertionError("pauses never end")


def say(text: str) -> None:
    """Words for whoever keeps our standard error, from before there is a log."""
    with contextlib.suppress(OSError):
        print(f"osaurusd: {text}", file=sys.stderr, flush=True)  # noqa: T201  there is no other place yet


def raise_file_limit() -> None:
    """Allow this process as many files as clients and workers may take; launchd's own soft limit is 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOFT_FILE_LIMIT if hard == resource.RLIM_INFINITY else min(SOFT_FILE_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bound_crash_log(descriptor: int, limit: int = CRASH_LOG_BYTES) -> None:
    """Empty the file that an output of ours goes to if it has grown beyond `limit`; what it held is kept once.

    Copied and truncated, not renamed: the service manager goes on writing to the file it opened.
    """
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size <= limit:
            return
        if (path := _path_of(descriptor)) is not None:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            path.with_name(path.name + ".1").chmod(0o600)
        os.ftruncate(descriptor, 0)


def notify(*fields: str, env: Mapping[str, str] = os.environ) -> None:
    """Tell systemd, if it listens (sd_notify(3)): `READY=1`, `STATUS=...`. What cannot be said is not worth failing."""
    if address := env.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send("\n".join(fields).encode())


def watchdog_seconds(env: Mapping[str, str] = os.environ) -> float | None:
    """How often to tell systemd that the loop still turns: twice as often as it wants to hear, or None."""
    microseconds = env.get("WATCHDOG_USEC", "")
    mine = env.get("WATCHDOG_PID") in (None, str(os.getpid()))
    return int(microseconds) / 2_000_000 if microseconds.isdecimal() and int(microseconds) and mine else None


async def feed_watchdog() -> None:
    """Tell systemd that the loop still turns, for as long as it does."""
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


def _path_of(descriptor: int) -> Path | None:
    """The path of an open file where the system tells, and it still leads there."""
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
