"""Who may speak to the daemon over the Unix socket."""

import asyncio
import contextlib
import os
import subprocess
import sys

import pytest
from aiohttp import web

from osaurusd.config import Config
from osaurusd.http import guard, listen, peer
from osaurusd.http.app import make_app

from .serve import serving

JSON = "Content-Type: application/json"


@pytest.fixture
def calls():
    return []


@pytest.fixture
async def server(home, calls):
    app = make_app(Config())
    guard.guard_socket(app, os.geteuid())

    async def hello(request):
        calls.append(peer.uid(request))
        return web.Response(text="hello")

    app.router.add_route("*", "/", hello)
    with listen.unix(home / "run" / "admin.sock") as listener:
        async with serving(app, listener) as server:
            yield server


@pytest.mark.parametrize("host", ["osaurusd", "OSAURUSD", "osaurusd:80", "localhost", "localhost:8080"])
async def test_our_own_clients_are_served(server, calls, host):
    answer = await server.ask(host=host)
    assert (answer.status, answer.body) == (200, b"hello")
    assert calls == [os.geteuid()]


@pytest.mark.parametrize("host", ["", "127.0.0.1", "[::1]", "evil.example", "osaurusd.evil.example", "osaurusd."])
async def test_other_hosts_are_refused(server, calls, host):
    answer = await server.ask(host=host)
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
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
async def test_what_comes_from_a_page_is_refused(server, calls, method, header):
    answer = await server.ask(method, "/", header, JSON, "Access-Control-Request-Method: POST")
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
    assert calls == []


async def test_bodies_must_be_json_here_too(server, calls):
    assert (await server.ask("POST", "/", "Content-Type: text/plain", body=b"{}")).status == 415
    assert calls == []
    assert (await server.ask("POST", "/", JSON, body=b"{}")).status == 200


@pytest.mark.parametrize(
    ("uid", "status"), [(os.geteuid(), 200), (0, 200), (os.geteuid() + 1, 403), (65534, 403), (None, 403)]
)
async def test_only_our_own_user_and_root_are_served(server, calls, monkeypatch, uid, status):
    monkeypatch.setattr(peer, "uid", lambda request: uid)
    answer = await server.ask()
    assert answer.status == status
    assert calls == ([uid] if status == 200 else [])


async def test_another_user_is_told_so_whatever_else_is_wrong(server, monkeypatch):
    monkeypatch.setattr(peer, "uid", lambda request: os.geteuid() + 1)
    answer = await server.ask("POST", "/none", "Origin: http://evil.example", host="evil.example", body=b"x")
    assert answer.status == 403
    assert answer.error["message"] == "this socket belongs to another user"


STRANGER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: osaurusd\\r\\nConnection: close\\r\\n\\r\\n")
    while data := client.recv(4096):
        sys.stdout.buffer.write(data)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_process_of_another_user_is_refused_even_where_it_could_connect(server, home, calls):
    path = home / "run" / "admin.sock"
    command = [sys.executable, "-I", "-c", STRANGER, str(path)]
    ask = {"capture_output": True, "check": False}

    refused = await asyncio.to_thread(subprocess.run, command, **ask)
    assert b"PermissionError" in refused.stderr

    for place, mode in ((home, 0o755), (path.parent, 0o755), (path, 0o666)):
        place.chmod(mode)
    answered = await asyncio.to_thread(subprocess.run, command, **ask)
    assert answered.stdout.startswith(b"HTTP/1.1 403 "), answered
    assert b"this socket belongs to another user" in answered.stdout
    assert calls == []


async def test_garbage_half_requests_and_idle_connections_keep_nobody_out(server, calls):
    beginnings = [b"", b"\x00\xff\x16\x03\x01", b"GET / HT", b"GET / HTTP/1.1\r\nHost: osau", b"\r\n" * 50]
    async with contextlib.AsyncExitStack() as stack:
        for number in range(200):
            _, writer = await server.connect()
            stack.callback(writer.close)
            writer.write(beginnings[number % len(beginnings)])
            await writer.drain()

        answer = await server.ask(host="osaurusd")

        assert (answer.status, answer.body) == (200, b"hello")
    assert (await server.ask(host="osaurusd")).status == 200
