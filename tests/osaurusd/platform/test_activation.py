"""Sockets that a service manager opened are taken as they are meant, or refused."""

import json
import os
import socket
import subprocess
import sys

import pytest

# Puts descriptors where systemd would, and reports what is made of them. LISTEN_PID can only be known afterwards.
SCRIPT = """
import json, os, sys
count, names = int(sys.argv[1]), sys.argv[2]
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
from osaurusd.errors import ListenFailed
from osaurusd.platform import activation
try:
    found = activation.activated_sockets()
except ListenFailed as error:
    print(json.dumps({"error": error.message}))
else:
    print(json.dumps({
        "http": [each.getsockname()[1] for each in found.http],
        "admin": found.admin and found.admin.getsockname(),
        "blocking": [each.getblocking() for each in [*found.http, *filter(None, [found.admin])]],
        "inheritable": [os.get_inheritable(each.fileno()) for each in found.http],
    }))
"""


def given(names, *listeners):
    """What a process makes of these sockets."""
    # From 3 on, in order: the shell that is in between moves them there.
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
    # High, so that no descriptor lies where another one is moved to.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        high = socket.socket(fileno=os.dup2(listener.fileno(), 20))
        yield high
        high.close()


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        high = socket.socket(fileno=os.dup2(listener.fileno(), 21))
        yield high
        high.close()


@pytest.mark.parametrize("names", ["http:admin", "", "something:else"])
def test_sockets_go_where_their_name_or_their_kind_says(tcp, unix, names):
    assert given(names, tcp, unix) == {
        "http": [tcp.getsockname()[1]],
        "admin": unix.getsockname(),
        "blocking": [False, False],
        "inheritable": [False],
    }


def test_a_socket_of_the_wrong_kind_is_refused(tcp, unix):
    assert given("admin:http", tcp, unix) == {
        "error": "the `admin` socket that the service manager passed is of the wrong kind"
    }


def test_two_admin_sockets_are_one_too_many(unix, tcp):
    assert "more than one" in given("admin:admin", unix, unix)["error"]


def test_sockets_for_another_process_are_not_ours(tcp):
    env = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    script = "from osaurusd.platform import activation; f = activation.activated_sockets(); assert not f.http and f.admin is None"
    subprocess.run([sys.executable, "-c", script], env=env, timeout=60, check=True)
