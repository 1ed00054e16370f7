"""Open file descriptors of a process."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

POLL_SECONDS = 0.1


def by_kind(pid: int) -> Counter[str]:
    """Count the descriptors of a process by kind: connections by their state, others by their target.

    Where the system does not show targets, all descriptors have the kind "any".
    """
    process = psutil.Process(pid)
    sockets = {connection.fd: _socket_kind(connection) for connection in process.net_connections(kind="all")}
    links = Path(f"/proc/{pid}/fd")
    if not links.is_dir():
        return Counter({"any": process.num_fds()})
    counts = Counter[str]()
    for link in links.iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:
            continue  # It was closed in the meantime.
        counts[sockets.get(int(link.name)) or _target_kind(str(target))] += 1
    return counts


def leaked(pid: int, before: Counter[str], seconds: float = 30.0) -> Counter[str]:
    """Return the descriptors that a process has in addition to `before`.

    Waits up to `seconds` until there are none, because a process notices a disconnect later than its client.
    """
    deadline = time.monotonic() + seconds
    while (extra := by_kind(pid) - before) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return extra


def _socket_kind(connection: Any) -> str:
    if connection.type is None or not hasattr(connection.laddr, "port"):
        return f"unix socket {connection.laddr or '(unnamed)'}"
    return f"tcp {connection.status.lower()}"


def _target_kind(target: str) -> str:
    """Return the target without the number of the pipe or socket."""
    kind, colon, rest = target.partition(":[")
    return kind if colon and rest.rstrip("]").isdigit() else target
