"""Where keys are asked for, a request without a right one gets no further, and learns nothing."""

import asyncio
import json

import pytest
from aiohttp import web

from osaurusd.config import Config
from osaurusd.http import auth, guard
from osaurusd.http.app import make_app
from osaurusd.http.keyring import Keyring

from .serve import serving


class Door:
    """An application behind keys, and what got through."""

    def __init__(self, tmp_path):
        self.keyring = Keyring(tmp_path / "keys.json")
        self.key = self.keyring.create().key
        self.asked = True
        self.calls = []
        config = Config()
        self.app = make_app(config)
        guard.guard_tcp(self.app, lambda: config.server)
        auth.ask_for_keys(self.app, self.keyring, lambda request: self.asked)
        for path in ("/", "/health", "/v1/health"):
            self.app.router.add_get(path, self.handle)
        self.app.router.add_post("/", self.handle)

    async def handle(self, request):
        self.calls.append((request.method, request.path))
        await request.read()
        return web.Response(text="hello")


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path)


@pytest.fixture
async def server(door):
    async with serving(door.app) as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        ["Authorization: Bearer {key}"],
        ["authorization: bearer {key}"],
        ["Authorization: Bearer   {key}  "],
        ["x-api-key: {key}"],
        ["X-API-Key: {key}"],
        ["Authorization: Bearer {key}", "x-api-key: {key}"],
    ],
)
async def test_a_key_is_taken_from_either_header(door, server, headers):
    answer = await server.ask("GET", "/", *(header.format(key=door.key) for header in headers))
    assert (200, b"hello") == (answer.status, answer.body)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "an API key is needed"),
        (["Authorization: Bearer sk-osaurus-wrong"], "not known here"),
        (["x-api-key: sk-osaurus-wrong"], "not known here"),
        (["Authorization: Bearer {key}", "x-api-key: sk-osaurus-wrong"], "contradict"),
        (["Authorization: Bearer sk-osaurus-wrong", "x-api-key: {key}"], "contradict"),
        (["Authorization: Bearer {key}", "Authorization: Bearer sk-osaurus-wrong"], "contradict"),
        (["Authorization: Basic {key}"], "other schemes"),
        (["Authorization: Basic dXNlcjpwYXNz", "x-api-key: {key}"], "other schemes"),
        (["Authorization: {key}"], "other schemes"),
        (["Authorization:"], "other schemes"),
        (["Authorization: Bearer"], "of the form"),
        (["Authorization: Bearer {key} {key}"], "of the form"),
        (["Authorization: Bearer {key},"], "of the form"),
        (["Authorization: Bearer \xe9"], "of the form"),
        (["x-api-key:"], "of the form"),
        (["x-api-key: Bearer {key}"], "of the form"),
        (["Cookie: api_key={key}"], "an API key is needed"),
    ],
)
async def test_anything_else_is_refused_in_the_way_that_clients_know(door, server, headers, message):
    answer = await server.ask("GET", "/", *(header.format(key=door.key) for header in headers))

    assert 401 == answer.status
    assert "Bearer" == answer.headers["WWW-Authenticate"]
    assert "invalid_api_key" == answer.error["code"]
    assert message in answer.error["message"]
    assert "sk-osaurus-" not in answer.body.decode()
    assert [] == door.calls


@pytest.mark.parametrize("path", ["/?key={key}", "/?api_key={key}", "/?access_token={key}"])
async def test_a_key_in_the_query_is_none(door, server, path):
    assert 401 == (await server.ask("GET", path.format(key=door.key))).status


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/none"), ("DELETE", "/"), ("HEAD", "/"), ("OPTIONS", "/"), ("GET", "/health/x")]
)
async def test_without_a_key_nobody_learns_what_there_is(server, method, path):
    assert 401 == (await server.ask(method, path)).status


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_needs_no_key(server, path):
    assert 200 == (await server.ask("GET", path)).status


async def test_a_preflight_carries_no_key_and_the_request_after_it_must(door, server):
    origin = "Origin: http://localhost:3000"
    wanted = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type"]
    preflight = await server.ask("OPTIONS", "/", origin, *wanted)
    assert 204 == preflight.status
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]

    refused = await server.ask("POST", "/", origin, "Content-Type: application/json", body=b"{}")
    assert (401, "http://localhost:3000") == (refused.status, refused.headers["Access-Control-Allow-Origin"])


async def test_the_key_is_looked_at_before_the_body(door, server):
    reader, writer = await server.connect()
    writer.write(
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
    )
    async with asyncio.timeout(20):
        assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n")
    writer.close()
    assert [] == door.calls


async def test_where_no_key_is_asked_for_none_is_looked_at(door, server):
    door.asked = False
    for header in ("Authorization: Bearer not-needed", "Authorization: Basic x", "x-api-key: ", "X: y"):
        assert 200 == (await server.ask("GET", "/", header)).status


async def test_a_revoked_key_is_refused_on_a_connection_that_it_was_good_on(door, server):
    request = f"GET / HTTP/1.1\r\nHost: localhost\r\nx-api-key: {door.key}\r\n\r\n".encode()
    reader, writer = await server.connect()
    async with asyncio.timeout(20):
        writer.write(request)
        assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n")
        await reader.readuntil(b"hello")
        door.keyring.revoke(door.keyring.all[0].id)
        writer.write(request)
        assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n")
    writer.close()


async def test_many_requests_write_the_file_once(door, server, tmp_path):
    key = f"x-api-key: {door.key}"
    await server.ask("GET", "/", key)
    first = (tmp_path / "keys.json").stat().st_mtime_ns
    assert json.loads((tmp_path / "keys.json").read_bytes())["keys"][0]["last_used"] > 0
    for _ in range(3):
        await server.ask("GET", "/", key)
    # One more where the hour changes meanwhile.
    assert len({first, (tmp_path / "keys.json").stat().st_mtime_ns}) <= 2


async def test_a_disk_that_is_full_keeps_nobody_out(door, server, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    assert 200 == (await server.ask("GET", "/", f"x-api-key: {door.key}")).status


async def test_keys_are_never_logged(door, logged, server):
    for header in (f"Authorization: Bearer {door.key}", "x-api-key: sk-osaurus-wrong", "Authorization: Basic secret"):
        await server.ask("GET", "/?key=secret", header)
    text = json.dumps(logged())
    assert "request" in text
    assert door.key not in text
    assert "sk-osaurus-" not in text
    assert "secret" not in text
