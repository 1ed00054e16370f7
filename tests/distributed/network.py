"""A network of hosts on one machine: namespaces of Linux that a bridge connects, or addresses of the loopback device.

Each namespace lives as long as a process of the test run, so that a run that is killed leaves no namespace, device or
mount. The namespace of the machine itself is not changed.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

CONTROL_PORT = 8444
CLONE_NEWNET = 0x40000000
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""

TOOLS = ("ip", "unshare", "nsenter", "setpriv")

FORCE_LOOPBACK = "OSAURUS_TEST_LOOPBACK"
"""A variable of the environment. If it is set, tests of hosts use loopback addresses."""


class Node(Protocol):
    """The place of one host in the network.

    Attributes:
        address: its IP address, which the other hosts reach.
        control: address and port for its daemon's control server.
        can_cut: whether its link can be cut, and its disk can be small.
        command: what a command line begins with, so that the command runs on this host.
    """

    address: str
    control: str
    can_cut: bool
    command: Sequence[str]

    def open_socket(self) -> socket.socket:
        """Create a TCP socket on this host."""

    def listening(self) -> list[tuple[str, int]]:
        """Return the addresses, other than loopback addresses, and the ports on which this host accepts connections."""

    def set_link(self, *, up: bool) -> None:
        """Plug the cable in or pull it."""

    def mount(self, folder: Path, size: int) -> None:
        """Mount an empty disk of this many bytes, which only this host sees."""

    def unmount(self, folder: Path) -> None:
        """Remove that disk."""

    def path(self, path: Path) -> Path:
        """Return where this process finds a path of the host."""


class Namespace:
    """A network and mount namespace that lives until `close`, or until this process ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "ip link set lo up && echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must not end the namespace before its daemons.
        )
        assert self._process.stdout is not None
        assert b"ready\n" == self._process.stdout.readline()
        self.pid = self._process.pid
        self.enter = ("nsenter", f"--target={self.pid}", "--net", "--mount", "env", "-C", str(Path.cwd()))

    def run(self, *command: str) -> None:
        """Run a command that takes little time."""
        subprocess.run([*self.enter, *command], check=True, capture_output=True)

    def open_socket(self) -> socket.socket:
        """Create a TCP socket in the namespace."""
        created: list[socket.socket] = []
        thread = threading.Thread(target=lambda: created.append(self._enter_and_create()))
        thread.start()
        thread.join()
        return created[0]

    def close(self) -> None:
        self._process.communicate()

    def _enter_and_create(self) -> socket.socket:
        """Move the calling thread, which must end afterwards, into the namespace, and create a socket there."""
        descriptor = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the namespace")
        finally:
            os.close(descriptor)
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


class NamespaceNode:
    """A host with a namespace, whose interface `eth0` is connected to the bridge in the namespace `switch`."""

    can_cut = True

    def __init__(self, namespace: Namespace, switch: Namespace, number: int) -> None:
        self.address = f"10.91.0.{number}"
        self.control = f"{self.address}:{CONTROL_PORT}"
        self.namespace = namespace
        # The host's processes end with the test run, even if it is killed.
        self.command = (*namespace.enter, "setpriv", "--pdeathsig=KILL")
        self._switch = switch
        self._port = f"port{number}"
        self._connect()

    def open_socket(self) -> socket.socket:
        return self.namespace.open_socket()

    def listening(self) -> list[tuple[str, int]]:
        lines = Path(f"/proc/{self.namespace.pid}/net/tcp").read_text().splitlines()[1:]
        fields = [line.split() for line in lines]
        listening = [parse_address(each[1]) for each in fields if each[3] == LISTEN]
        return [(address, port) for address, port in listening if not address.startswith("127.")]

    def set_link(self, *, up: bool) -> None:
        self._switch.run("ip", "link", "set", self._port, "up" if up else "down")

    def mount(self, folder: Path, size: int) -> None:
        self.namespace.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    def unmount(self, folder: Path) -> None:
        self.namespace.run("umount", "--lazy", str(folder))

    def path(self, path: Path) -> Path:
        return Path(f"/proc/{self.namespace.pid}/root") / path.relative_to("/")

    def _connect(self) -> None:
        peer = ("peer", "name", "eth0", "netns", str(self.namespace.pid))
        self._switch.run("ip", "link", "add", self._port, "type", "veth", *peer)
        self._switch.run("ip", "link", "set", self._port, "master", "bridge0")
        self.set_link(up=True)
        self.namespace.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.namespace.run("ip", "link", "set", "eth0", "up")


class LoopbackNode:
    """A host that shares the network of this machine. Its link cannot be cut."""

    can_cut = False
    command = ()

    def __init__(self, number: int) -> None:
        # On Linux, each address in 127.0.0.0/8 is local. Other systems have only one.
        self.address = f"127.0.0.{number}" if sys.platform == "linux" else "127.0.0.1"
        with socket.create_server((self.address, 0)) as listener:
            self.control = f"{self.address}:{listener.getsockname()[1]}"

    def open_socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def listening(self) -> list[tuple[str, int]]:
        raise NotImplementedError

    def set_link(self, *, up: bool) -> None:
        raise NotImplementedError

    def mount(self, folder: Path, size: int) -> None:
        raise NotImplementedError

    def unmount(self, folder: Path) -> None:
        raise NotImplementedError

    def path(self, path: Path) -> Path:
        return path


def parse_address(text: str) -> tuple[str, int]:
    """Parse an address as /proc/net/tcp has it: hexadecimal, in the byte order of the machine."""
    address, _, port = text.partition(":")
    return socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder)), int(port, 16)


@functools.cache
def has_namespaces() -> bool:
    """Whether this process may create network namespaces."""
    if FORCE_LOOPBACK in os.environ or sys.platform != "linux" or not all(map(shutil.which, TOOLS)):
        return False
    probe = "ip link add bridge0 type bridge && ip link add port0 type veth peer name eth0"
    return 0 == subprocess.run(["unshare", "--net", "--mount", "sh", "-c", probe], capture_output=True).returncode


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="this user cannot create network namespaces")


@contextlib.contextmanager
def connected_nodes(count: int) -> Iterator[list[Node]]:
    """Connect hosts that reach each other while the block runs."""
    if not has_namespaces():
        yield [LoopbackNode(number) for number in range(1, count + 1)]
        return
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(contextlib.closing(Namespace()))
        switch.run("ip", "link", "add", "bridge0", "type", "bridge")
        switch.run("ip", "link", "set", "bridge0", "up")
        namespaces = [stack.enter_context(contextlib.closing(Namespace())) for _ in range(count)]
        yield [NamespaceNode(namespace, switch, number) for number, namespace in enumerate(namespaces, 1)]
