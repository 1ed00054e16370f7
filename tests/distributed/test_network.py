"""The network of the other tests: daemons reach each other, links can be cut, and nothing remains of a killed run."""

import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from tests import daemons
from tests.distributed.hosts import Host, connected_hosts
from tests.distributed.network import Node, connected_nodes, has_namespaces

needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="this user cannot create network namespaces")

TIMEOUT_SECONDS = 0.3

KILLED_RUN = """
import sys
from tests.distributed.hosts import connected_hosts
with connected_hosts("a") as (host,):
    del host.settings["distributed"]
    host.start()
    print(host.pid, host.node.namespace.pid, flush=True)
    sys.stdin.read()
"""


def exchange(source: Node, target: Node) -> bytes:
    """Send a byte from one host to another and return what arrives."""
    with target.open_socket() as listener, source.open_socket() as client:
        listener.bind((target.address, 0))
        listener.listen()
        listener.settimeout(TIMEOUT_SECONDS)
        client.settimeout(TIMEOUT_SECONDS)
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
            exchange(first, second)
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
    daemons.wait_until(lambda: not any(map(psutil.pid_exists, pids)))


def test_each_host_serves_clients_on_this_machine() -> None:
    with connected_hosts("a", "b") as hosts:
        for host in hosts:
            del host.settings["distributed"]
            host.start()
        assert 2 == len({host.url for host in hosts})
        for host in hosts:
            assert host.pid in [process.pid for process in host.processes()]
            check_health(host)
        hosts[0].kill()
        assert [] == hosts[0].processes()
        hosts[0].start()
        check_health(hosts[0])


def check_health(host: Host) -> None:
    with urlopen(f"{host.url}/health", timeout=30) as response:
        assert 200 == response.status
    assert host.pid == host.ctl("status")["pid"]
