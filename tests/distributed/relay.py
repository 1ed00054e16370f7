"""A relay from a port of this machine to a port of a host, for clients that know nothing of namespaces."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.distributed.network import Node

CHUNK = 65536


class Relay:
    """Relays connections to 127.0.0.1:port of a host until `close`.

    Attributes:
        port: the port of this machine.
    """

    def __init__(self, node: Node, port: int) -> None:
        self._node = node
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *list(self._sockets)):
            shut_down(each, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._relay, args=(client,)))
                self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with client, self._node.open_socket() as upstream, contextlib.suppress(OSError):
            self._sockets |= {client, upstream}
            upstream.connect(self._target)
            sending = threading.Thread(target=copy, args=(client, upstream))
            sending.start()
            copy(upstream, client)
            shut_down(client, socket.SHUT_RDWR)
            sending.join()
        self._sockets -= {client, upstream}


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until the end; a closed connection is the end, too."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK):
            target.sendall(chunk)
    shut_down(target, socket.SHUT_WR)


def shut_down(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)


@contextlib.contextmanager
def relayed(node: Node, port: int) -> Iterator[int]:
    """Relay connections to 127.0.0.1:port of the host while the block runs; yield the port of this machine."""
    with contextlib.closing(Relay(node, port)) as relay:
        yield relay.port
