"""Find the process that listens on a TCP port."""

import subprocess

import psutil

LSOF_TIMEOUT_SECONDS = 5.0


def holder(port: int) -> str | None:
    """Return the name and pid of the process that listens on `port`; None if it is not visible. Blocking."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        # On macOS only root sees the sockets of other processes, except through lsof.
        return _holder_from_lsof(port)
    return None


def _holder_from_lsof(port: int) -> str | None:
    command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LSOF_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = {line[:1]: line[1:] for line in reversed(run.stdout.splitlines())}
    return f"{fields['c']} (pid {fields['p']})" if {"c", "p"} <= fields.keys() else None
