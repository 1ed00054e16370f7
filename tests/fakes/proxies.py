"""Proxies on loopback that connect every name to this machine, and record what they are asked for."""

import contextlib
import select
import socket
import socketserver
import struct
import threading
from urllib.parse import urlsplit

_SOCKS_VERSION = 5
_NO_CREDENTIALS, _USER_AND_PASSWORD = 0, 2
_IPV4, _NAME = 1, 3


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy. `targets` are the hosts that clients asked for; `user` is required if it is set."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.port = self.server_address[1]
        self.targets = []
        self.user = None
        self.credentials = []

    def connect(self, host, port):
        self.targets.append(host)
        return socket.create_connection(("127.0.0.1", port), timeout=30)

    def handle_error(self, request, client_address):
        pass


class _SocksHandler(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self):
        _, count = self.rfile.read(2)
        methods = self.rfile.read(count)
        method = _USER_AND_PASSWORD if self.server.user else _NO_CREDENTIALS
        if method not in methods:
            self.wfile.write(bytes([_SOCKS_VERSION, 0xFF]))
            return
        self.wfile.write(bytes([_SOCKS_VERSION, method]))
        if method == _USER_AND_PASSWORD and not self._accept_credentials():
            return
        *_, kind = self.rfile.read(4)
        host = (
            self.rfile.read(self.rfile.read(1)[0]).decode() if kind == _NAME else socket.inet_ntoa(self.rfile.read(4))
        )
        (port,) = struct.unpack("!H", self.rfile.read(2))
        with self.server.connect(host, port) as target:
            self.wfile.write(bytes([_SOCKS_VERSION, 0, 0, _IPV4, 0, 0, 0, 0, 0, 0]))
            _relay(self.connection, target)

    def _accept_credentials(self):
        self.rfile.read(1)
        user, password = (self.rfile.read(self.rfile.read(1)[0]).decode() for _ in range(2))
        self.server.credentials.append((user, password))
        accepted = user == self.server.user
        self.wfile.write(bytes([1, 0 if accepted else 1]))
        return accepted


class _HttpHandler(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self):
        method, url, _ = self.rfile.readline().decode().split()
        headers = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            headers.append(line)
        if method == "CONNECT":
            host, _, port = url.rpartition(":")
            with self.server.connect(host, int(port)) as target:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                _relay(self.connection, target)
            return
        parts = urlsplit(url)
        path = url.removeprefix(f"{parts.scheme}://{parts.netloc}")
        kept = [line for line in headers if not line.lower().startswith((b"connection:", b"proxy-"))]
        with self.server.connect(parts.hostname, parts.port) as target:
            target.sendall(b"".join([f"{method} {path} HTTP/1.1\r\n".encode(), *kept, b"Connection: close\r\n\r\n"]))
            _relay(self.connection, target)


def _relay(one, other):
    """Copy data in both directions until one side closes."""
    peers = {one: other, other: one}
    while True:
        for ready in select.select([*peers], [], [])[0]:
            data = ready.recv(65536)
            if not data:
                return
            peers[ready].sendall(data)


def running(kind):
    """Run a proxy of the kind `socks` or `http`: a context manager that yields the Proxy."""
    return serving(Proxy(_SocksHandler if kind == "socks" else _HttpHandler))


@contextlib.contextmanager
def serving(server):
    """Run a server in a thread; yields it."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
