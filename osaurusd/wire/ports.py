"""Who holds a TCP port."""

import subprocess

import psutil

_SECONDS = 5.0


def holder(port: int) -> str | None:
    """Name and pid of a process that listens on `port`; None if that cannot be seen. Blocking."""
    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f"{psutil.Process(each.pid).name()} (pid {each.pid})"
    except psutil.Error:
        # macOS shows other processes' sockets to root only, and to lsof.
        return _by_lsof(port)
    return None


def _by_lsof(port: int) -> str | None:
    command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = {line[:1]: line[1:] for line in reversed(run.stdout.splitlines())}
    return f"{found['c']} (pid {found['p']})" if {"c", "p"} <= found.keys() else None
