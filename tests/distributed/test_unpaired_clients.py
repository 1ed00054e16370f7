"""An unpaired client in the network gets nothing from the control port or from the ports of the ring."""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trustme

from tests.distributed.cluster import Cluster, pair, wait_until
from tests.distributed.hosts import CommandFailed, Host, connected_hosts
from tests.distributed.models import PIPELINE, make_models
from tests.distributed.network import Node, needs_namespaces

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

UNPAIRED_SECONDS = 20.0
"""More than a daemon waits for an unpaired client's next word."""

START_SECONDS = 20.0
SLACK_SECONDS = 30.0
ATTEMPTS = 8
"""On a busy machine, the ranks may not be ready in time."""

WRONG_CODE = "0000-0000-0000-0000"
REQUEST = b"GET /v0/host HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def network(tiny_tokenizer: Path) -> Iterator[tuple[Cluster, Host]]:
    """Two paired hosts, and a third one that is paired with neither."""
    with connected_hosts("a", "b", "unpaired") as hosts:
        cluster = Cluster(hosts[:2])
        for host in hosts:
            host.configure("distributed", start_timeout_seconds=START_SECONDS)
        make_models(cluster.leader.home / "models", tiny_tokenizer, PIPELINE)
        cluster.start()
        cluster.pair()
        yield cluster, hosts[2]


@pytest.fixture
def unpaired(network: tuple[Cluster, Host]) -> Iterator[Host]:
    """The host that is not paired, with a running daemon."""
    host = network[1]
    host.start()
    try:
        yield host
    finally:
        host.stop()


def control_socket(source: Node, target: Node) -> socket.socket:
    address, _, port = target.control.rpartition(":")
    connection = source.open_socket()
    connection.settimeout(UNPAIRED_SECONDS)
    connection.connect((address, int(port)))
    return connection


def answer(connection: socket.socket, data: bytes) -> bytes:
    """Send data and return everything that arrives until the other side closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(data)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def unpaired_context(tmp_path: Path, *, certificate: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate:
        issued = trustme.CA().issue_cert("unpaired")
        issued.configure_cert(context)
    return context


def check_serves(cluster: Cluster) -> None:
    """The daemons still serve each other."""
    assert cluster.leader.ctl("host", "check", "b")["ok"]


def test_control_port_answers_no_plain_text(network: tuple[Cluster, Host]) -> None:
    cluster, unpaired = network
    with control_socket(unpaired.node, cluster.followers[0].node) as connection:
        assert b"HTTP" not in answer(connection, REQUEST)
    with control_socket(unpaired.node, cluster.followers[0].node) as connection:
        assert b"HTTP" not in answer(connection, os.urandom(4096))
    with control_socket(unpaired.node, cluster.followers[0].node) as connection:
        assert b"" == answer(connection, b"")  # It is closed after a while.
    check_serves(cluster)


@pytest.mark.parametrize("certificate", [False, True])
def test_control_port_serves_no_request_of_an_unpaired_client(
    network: tuple[Cluster, Host], tmp_path: Path, certificate: bool
) -> None:
    cluster, unpaired = network
    context = unpaired_context(tmp_path, certificate=certificate)
    with (
        control_socket(unpaired.node, cluster.followers[0].node) as plain,
        contextlib.suppress(ssl.SSLError),
        context.wrap_socket(plain) as connection,
    ):
        assert b"HTTP" not in answer(connection, REQUEST)
    check_serves(cluster)


def test_many_unpaired_clients_do_not_lock_out_paired_hosts(network: tuple[Cluster, Host]) -> None:
    cluster, unpaired = network
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(control_socket(unpaired.node, cluster.followers[0].node))
        check_serves(cluster)


def test_wrong_codes_withdraw_the_code(network: tuple[Cluster, Host], unpaired: Host) -> None:
    follower = network[0].followers[0]
    url = f"https://{follower.node.control}"
    code = follower.ctl("host", "code")["code"]
    for _ in range(5):
        with pytest.raises(CommandFailed, match="code"):
            unpaired.ctl("host", "add", "b", url, text=f"{WRONG_CODE}\n")
    with pytest.raises(CommandFailed, match="code"):
        unpaired.ctl("host", "add", "b", url, text=f"{code}\n")
    assert ["a"] == [host["name"] for host in follower.ctl("host", "ls")]
    assert [] == unpaired.ctl("host", "ls")


def test_code_works_once(network: tuple[Cluster, Host], unpaired: Host) -> None:
    follower = network[0].followers[0]
    code = pair(unpaired, follower)
    unpaired.ctl("host", "rm", "b", "--yes")
    with pytest.raises(CommandFailed, match="code"):
        unpaired.ctl("host", "add", "b", f"https://{follower.node.control}", text=f"{code}\n")
    follower.ctl("host", "rm", "unpaired", "--yes")


def test_removed_host_is_an_unpaired_client(network: tuple[Cluster, Host], unpaired: Host) -> None:
    follower = network[0].followers[0]
    pair(unpaired, follower)
    assert unpaired.ctl("host", "check", "b")
    follower.ctl("host", "rm", "unpaired", "--yes")
    with pytest.raises(CommandFailed):
        unpaired.ctl("host", "check", "b")
    check_serves(network[0])


class RingClient:
    """Connects to each port on which a rank listens, as soon as it does, and sends nonsense."""

    def __init__(self, cluster: Cluster, source: Node) -> None:
        self._cluster = cluster
        self._source = source
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.received: list[bytes] = []
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "RingClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for connection in self.connections:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                self.received.append(connection.recv(65536))
            connection.close()

    def _run(self) -> None:
        while not self._stopped.wait(0.005):
            for address in listening(self._cluster):
                self._connect(address)

    def _connect(self, address: tuple[str, int]) -> None:
        connection = self._source.open_socket()
        connection.settimeout(1)
        try:
            connection.connect(address)
            connection.sendall(os.urandom(256))
        except OSError:
            connection.close()
        else:
            self.connections.append(connection)


class LoadEnded(Exception):
    """The load has ended before what was waited for."""


class SlowNeighbor:
    """Suspends rank 1 before the ranks connect, until a client has connected to rank 0, which listens meanwhile.

    Without that, it listens for milliseconds only.
    """

    def __init__(self, cluster: Cluster, ring: RingClient) -> None:
        self._leader, self._follower = cluster.leader, cluster.followers[0]
        self._ring = ring
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess, LoadEnded), contextlib.ExitStack() as suspended:
            self._wait(self._leader.ranks)
            first = suspend(self._leader, suspended)
            self._wait(self._is_follower_ready)
            suspend(self._follower, suspended)
            first.resume()
            self._wait(lambda: self._ring.connections)

    def _is_follower_ready(self) -> bool:
        workers = self._leader.daemon.admin("GET", "/v0/workers")[1]
        return ["starting", "waiting"] == [rank["state"] for worker in workers for rank in worker["ranks"]]

    def _wait(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self._stopped.wait(0.005):
                raise LoadEnded


def suspend(host: Host, suspended: contextlib.ExitStack) -> psutil.Process:
    """Suspend the rank on a host until the stack is closed."""
    rank = host.rank()
    rank.suspend()
    suspended.callback(rank.resume)
    return rank


def listening(cluster: Cluster) -> list[tuple[str, int]]:
    """The addresses on which ranks listen."""
    found = [address for host in cluster.hosts for address in host.node.listening()]
    control = [host.node.control for host in cluster.hosts]
    return [(address, port) for address, port in found if f"{address}:{port}" not in control]


@needs_namespaces
def test_unpaired_client_on_the_ring_delays_a_start_at_most(network: tuple[Cluster, Host]) -> None:
    cluster, unpaired = network
    with RingClient(cluster, unpaired.node) as ring:
        for _ in range(ATTEMPTS):
            with SlowNeighbor(cluster, ring):
                load_beside_ring_client(cluster)
            if ring.connections:
                break
    assert ring.connections, "the unpaired client has found no port"
    assert b"" == b"".join(ring.received)
    cluster.load(PIPELINE, "pipeline", 2)
    wait_until(lambda: not listening(cluster), "a rank of a running group accepts connections")
    cluster.check_nothing_left(PIPELINE)


def load_beside_ring_client(cluster: Cluster) -> None:
    """Load the model, or fail in time with the reason; then unload it."""
    started, problem = time.monotonic(), ""
    try:
        cluster.load(PIPELINE, "pipeline", 2)
    except CommandFailed as failure:
        problem = failure.output
    assert not problem or any(word in problem for word in ("start_timeout_seconds", "ring")), problem
    # The ranks get the time to become ready, and again to connect.
    assert time.monotonic() - started < 2 * START_SECONDS + SLACK_SECONDS
    cluster.unload(PIPELINE)
