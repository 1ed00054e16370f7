"""The network of the other tests: hosts reach each other, links can be cut, and nothing remains of a killed run."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import daemons
from tests.distributed.network import Node, connected_nodes, needs_namespaces

REACH_SECONDS = 30.0
CUT_SECONDS = 0.3

KILLED_RUN = """
import subprocess, sys
from tests.distributed.network import connected_nodes
with connected_nodes(1) as (node,):
    command = [*node.command, "sh", "-c", "echo started; exec sleep 600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    print(process.pid, node.namespace.pid, flush=True)
    sys.stdin.read()
"""


def exchange(source: Node, target: Node, timeout: float = REACH_SECONDS) -> bytes:
    """Send a byte from one host to another and return what arrives."""
    with target.open_socket() as listener, source.open_socket() as client:
        listener.bind((target.address, 0))
        listener.listen()
        listener.settimeout(timeout)
        client.settimeout(timeout)
        client.connect(listener.getsockname())
        client.send(b"x")
        with listener.accept()[0] as connection:
            return connection.recv(1)


@needs_namespaces
def test_hosts_reach_each_other_until_a_link_is_cut() -> None:
    with connected_nodes(2) as (first, second):
        assert b"x" == exchange(first, second)
        second.set_link(up=False)
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            exchange(first, second, CUT_SECONDS)
        second.set_link(up=True)
        assert b"x" == exchange(second, first)


@needs_namespaces
def test_disk_of_a_host_is_small(tmp_path: Path) -> None:
    with connected_nodes(1) as (node,):
        node.mount(tmp_path, 1 << 20)
        with pytest.raises(OSError, match="No space left"):
            (node.path(tmp_path) / "file").write_bytes(bytes(2 << 20))
        assert [] == list(tmp_path.iterdir())


@needs_namespaces
def test_nothing_remains_of_a_killed_run() -> None:
    run = subprocess.Popen([sys.executable, "-c", KILLED_RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with run:
        pids = [int(word) for word in run.stdout.readline().split()]
        run.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    daemons.wait_until(lambda: not any(map(psutil.pid_exists, pids)))
