"""What the open descriptors of a process are."""

import time
from collections import Counter
from pathlib import Path

import psutil


def by_kind(pid: int) -> Counter[str]:
    """How many descriptors of each kind a process has: connections by their state, all else by what it is."""
    process = psutil.Process(pid)
    sockets = {connection.fd: _socket(connection) for connection in process.net_connections(kind="all")}
    links = Path(f"/proc/{pid}/fd")
    if not links.is_dir():
        return Counter({"any": process.num_fds()})
    found = Counter[str]()
    for link in links.iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:
            continue  # closed meanwhile
        found[sockets.get(int(link.name)) or _other(str(target))] += 1
    return found


def leaked(pid: int, before: Counter[str], seconds: float = 30.0) -> Counter[str]:
    """Those that a process has more than `before`. What is just being closed is given time to go.

    A process notices a moment later than its client that this one has hung up.
    """
    until = time.monotonic() + seconds
    while (more := by_kind(pid) - before) and time.monotonic() < until:
        time.sleep(0.1)
    return more


def _socket(connection) -> str:
    if connection.type is None or not hasattr(connection.laddr, "port"):
        return f"unix socket {connection.laddr or '(without a name)'}"
    return f"tcp {connection.status.lower()}"


def _other(target: str) -> str:
    """Without the number that tells one pipe or socket from another."""
    kind, colon, rest = target.partition(":[")
    return kind if colon and rest.rstrip("]").isdigit() else target
