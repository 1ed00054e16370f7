"""Whether a program listens on a TCP port, and which one."""

import socket
import subprocess

import psutil

LSOF_TIMEOUT_SECONDS = 5.0

# A connection to an address of this machine succeeds or fails at once, unless the listener's backlog is full.
_CONNECT_TIMEOUT_SECONDS = 0.5
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def accepts_connections(address: str, port: int) -> bool:
    """Whether a program accepts connections on an address of this machine; wildcards mean their loopback address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_TIMEOUT_SECONDS)
            probe.connect((_LOOPBACK.get(address, address), port))
            # The system may choose the port itself as the source port. TCP then connects the socket to itself.
            return bool(probe.getsockname()[:2] != probe.getpeername()[:2])
    except OSError:
        return False


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
