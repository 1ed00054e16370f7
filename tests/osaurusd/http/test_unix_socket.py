"""The Unix socket serves only programs of its owner, and no web pages."""

import asyncio
import collections
import contextlib
import os
import socket
import subprocess
import sys

import pytest
from aiohttp import web

from osaurusd.http import auth
from osaurusd.http.app import socket_middlewares
from osaurusd.http.listen import listen_unix

from .serve import build_app, serving

JSON = "Content-Type: application/json"

FakeRequest = collections.namedtuple("FakeRequest", "transport")

OTHER_USER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: osaurusd\\r\\nConnection: close\\r\\n\\r\\n")
    while data := client.recv(4096):
        sys.stdout.buffer.write(data)
"""


@pytest.fixture
def calls():
    """The user ids of the clients whose requests reached the handler."""
    return []


@pytest.fixture
async def server(home, calls):
    async def hello(request):
        calls.append(auth.request_uid(request))
        return web.Response(text="hello")

    app = build_app(("*", "/", hello), middlewares=socket_middlewares(os.geteuid()))
    with listen_unix(home / "run" / "admin.sock") as listener:
        async with serving(app, listener=listener) as server:
            yield server


@pytest.mark.parametrize("host", ["osaurusd", "OSAURUSD", "osaurusd:80", "localhost", "localhost:8080"])
async def test_clients_of_the_same_user_are_served(server, calls, host):
    response = await server.request(host=host)
    assert (response.status, response.body) == (200, b"hello")
    assert calls == [os.geteuid()]


@pytest.mark.parametrize("host", ["", "127.0.0.1", "[::1]", "evil.example", "osaurusd.evil.example", "osaurusd."])
async def test_other_hosts_are_rejected(server, calls, host):
    response = await server.request(host=host)
    assert (response.status, response.error["code"]) == (403, "forbidden")
    assert calls == []


@pytest.mark.parametrize(
    "header",
    [
        "Origin: http://localhost",
        "Origin: null",
        "Origin:",
        "Origin: http://evil.example",
        "Referer: http://localhost/",
        "Referer:",
        "referer: https://evil.example/page",
        "Sec-Fetch-Site: none",
        "Sec-Fetch-Site: cross-site",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_requests_of_web_pages_are_rejected(server, calls, method, header):
    response = await server.request(method, "/", header, JSON, "Access-Control-Request-Method: POST")
    assert (response.status, response.error["code"]) == (403, "forbidden")
    assert [name for name in response.headers if name.lower().startswith("access-control")] == []
    assert calls == []


async def test_bodies_must_be_json(server, calls):
    assert (await server.request("POST", "/", "Content-Type: text/plain", body=b"{}")).status == 415
    assert calls == []
    assert (await server.request("POST", "/", JSON, body=b"{}")).status == 200


@pytest.mark.parametrize(
    ("uid", "status"), [(os.geteuid(), 200), (0, 200), (os.geteuid() + 1, 403), (65534, 403), (None, 403)]
)
async def test_only_the_owner_and_root_are_served(server, calls, monkeypatch, uid, status):
    monkeypatch.setattr(auth, "request_uid", lambda request: uid)
    response = await server.request()
    assert response.status == status
    assert calls == ([uid] if status == 200 else [])


async def test_user_is_checked_first(server, monkeypatch):
    monkeypatch.setattr(auth, "request_uid", lambda request: os.geteuid() + 1)
    response = await server.request("POST", "/none", "Origin: http://evil.example", host="evil.example", body=b"x")
    assert response.status == 403
    assert response.error["message"] == "this socket belongs to another user"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_process_of_another_user_is_rejected_even_if_it_can_connect(server, home, calls):
    path = home / "run" / "admin.sock"
    command = [sys.executable, "-I", "-c", OTHER_USER, str(path)]
    options = {"capture_output": True, "check": False}

    rejected = await asyncio.to_thread(subprocess.run, command, **options)
    assert b"PermissionError" in rejected.stderr

    for place, mode in ((home, 0o755), (path.parent, 0o755), (path, 0o666)):
        place.chmod(mode)
    served = await asyncio.to_thread(subprocess.run, command, **options)
    assert served.stdout.startswith(b"HTTP/1.1 403 "), served
    assert b"this socket belongs to another user" in served.stdout
    assert calls == []


async def test_idle_and_malformed_connections_do_not_block_clients(server, calls):
    beginnings = [b"", b"\x00\xff\x16\x03\x01", b"GET / HT", b"GET / HTTP/1.1\r\nHost: osau", b"\r\n" * 50]
    async with contextlib.AsyncExitStack() as stack:
        for number in range(200):
            _, writer = await server.connect()
            stack.callback(writer.close)
            writer.write(beginnings[number % len(beginnings)])
            await writer.drain()

        response = await server.request(host="osaurusd")

        assert (response.status, response.body) == (200, b"hello")
    assert (await server.request(host="osaurusd")).status == 200


def test_peer_of_a_socketpair_is_the_current_user():
    local, remote = socket.socketpair()
    with local, remote:
        assert auth.socket_uid(local) == os.geteuid()
        assert auth.socket_uid(remote) == os.geteuid()


def test_closed_socket_has_no_peer():
    local, remote = socket.socketpair()
    remote.close()
    local.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        auth.socket_uid(local)


def test_request_without_connection_has_no_user():
    assert auth.request_uid(FakeRequest(None)) is None
