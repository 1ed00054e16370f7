"""Sockets that the service manager passes are used by name and kind, or rejected."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

# The shell does not overwrite descriptors from this one on.
FIRST_HIGH = 20

# Reports the sockets that a process finds. LISTEN_PID must be its own pid, so it is set by the process itself.
SCRIPT = """
import json, os, sys
count, names = int(sys.argv[1]), sys.argv[2]
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
from osaurusd.errors import ListenFailed
from osaurusd.platform import activation
try:
    sockets = activation.activated_sockets()
except ListenFailed as error:
    print(json.dumps({"error": error.message}))
else:
    print(json.dumps({
        "http": [sock.getsockname()[1] for sock in sockets.http],
        "admin": sockets.admin and sockets.admin.getsockname(),
        "blocking": [sock.getblocking() for sock in [*sockets.http, *filter(None, [sockets.admin])]],
        "inheritable": [os.get_inheritable(sock.fileno()) for sock in sockets.http],
    }))
"""


def activate(names, *listeners):
    """Start a process with these sockets as systemd does, and return what it finds."""
    # The shell moves them to the descriptors from 3 on.
    moves = " ".join(f"{3 + index}<&{listener.fileno()}" for index, listener in enumerate(listeners))
    run = subprocess.run(
        ["bash", "-c", f'exec "$@" {moves}', "bash", sys.executable, "-c", SCRIPT, str(len(listeners)), names],
        pass_fds=[listener.fileno() for listener in listeners],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        high = socket.socket(fileno=fcntl.fcntl(listener, fcntl.F_DUPFD, FIRST_HIGH))
        yield high
        high.close()


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        high = socket.socket(fileno=fcntl.fcntl(listener, fcntl.F_DUPFD, FIRST_HIGH))
        yield high
        high.close()


@pytest.mark.parametrize("names", ["http:admin", "", "something:else"])
def test_sockets_are_assigned_by_name_or_kind(tcp, unix, names):
    assert activate(names, tcp, unix) == {
        "http": [tcp.getsockname()[1]],
        "admin": unix.getsockname(),
        "blocking": [False, False],
        "inheritable": [False],
    }


def test_socket_of_the_wrong_kind_is_rejected(tcp, unix):
    assert activate("admin:http", tcp, unix) == {
        "error": "the service manager passed a socket of the wrong kind as `admin`"
    }


def test_second_admin_socket_is_rejected(unix, tcp):
    assert "more than one" in activate("admin:admin", unix, unix)["error"]


def test_sockets_for_another_process_are_ignored(tcp):
    env = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    script = (
        "from osaurusd.platform.activation import activated_sockets\n"
        "sockets = activated_sockets()\n"
        "assert not sockets.http and sockets.admin is None"
    )
    subprocess.run([sys.executable, "-c", script], env=env, timeout=60, check=True)
