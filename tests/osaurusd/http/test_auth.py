"""Requests without a required API key are rejected before the handler, and reveal nothing."""

import asyncio
import collections
import json

import pytest
from aiohttp import web

from osaurusd import __version__
from osaurusd.config import Server
from osaurusd.errors import ConfigError
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.auth import AuthPolicy, name_version, require_api_key
from osaurusd.http.cors import Cors, require_json_body
from osaurusd.http.request import read_body

from .serve import build_app, connected, serving

LOOPBACK = ["127.0.0.1", "::1"]
LOCAL_PEERS = [("127.0.0.1", 5), ("::1", 5, 0, 0), ("::ffff:127.0.0.1", 5, 0, 0)]
REMOTE_PEERS = [("192.168.1.5", 5), ("fe80::1%eth0", 5, 0, 2)]

FakeRequest = collections.namedtuple("FakeRequest", "transport")


class FakeTransport:
    def __init__(self, peer):
        self.peer = peer

    def get_extra_info(self, name):
        return {"peername": self.peer}[name]


class Protected:
    """An application that requires API keys, and the requests that reached its handler."""

    def __init__(self, tmp_path):
        self.keys = ApiKeys(tmp_path / "keys.json")
        self.key = self.keys.create().key
        self.required = True
        self.calls = []
        cors = Cors(Server)
        self.app = build_app(
            *(("GET", path, self.handle) for path in ("/", "/health", "/v1/health")),
            ("POST", "/", self.handle),
            middlewares=[cors.check, require_json_body, require_api_key(self.keys, lambda request: self.required)],
            response_hooks=[cors.add_headers, name_version(lambda request: self.required)],
        )

    async def handle(self, request):
        self.calls.append((request.method, request.path))
        await read_body(request)
        return web.Response(text="hello")


@pytest.fixture
def protected(tmp_path):
    return Protected(tmp_path)


@pytest.fixture
async def server(protected):
    async with serving(protected.app) as server:
        yield server


@pytest.fixture
def keys(tmp_path):
    return ApiKeys(tmp_path / "keys.json")


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
async def test_key_is_accepted_in_either_header(protected, server, headers):
    response = await server.request("GET", "/", *(header.format(key=protected.key) for header in headers))
    assert (200, b"hello") == (response.status, response.body)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "an API key is required"),
        (["Authorization: Bearer sk-osaurus-wrong"], "is not valid"),
        (["x-api-key: sk-osaurus-wrong"], "is not valid"),
        (["Authorization: Bearer {key}", "x-api-key: sk-osaurus-wrong"], "several different"),
        (["Authorization: Bearer sk-osaurus-wrong", "x-api-key: {key}"], "several different"),
        (["Authorization: Bearer {key}", "Authorization: Bearer sk-osaurus-wrong"], "several different"),
        (["Authorization: Basic {key}"], "other schemes"),
        (["Authorization: Basic dXNlcjpwYXNz", "x-api-key: {key}"], "other schemes"),
        (["Authorization: {key}"], "other schemes"),
        (["Authorization:"], "other schemes"),
        (["Authorization: Bearer"], "well-formed"),
        (["Authorization: Bearer {key} {key}"], "well-formed"),
        (["Authorization: Bearer {key},"], "well-formed"),
        (["Authorization: Bearer \xe9"], "well-formed"),
        (["x-api-key:"], "well-formed"),
        (["x-api-key: Bearer {key}"], "well-formed"),
        (["Cookie: api_key={key}"], "an API key is required"),
    ],
)
async def test_other_credentials_are_rejected_with_401(protected, server, headers, message):
    response = await server.request("GET", "/", *(header.format(key=protected.key) for header in headers))

    assert 401 == response.status
    assert "Bearer" == response.headers["WWW-Authenticate"]
    assert "invalid_api_key" == response.error["code"]
    assert message in response.error["message"]
    assert "sk-osaurus-" not in response.body.decode()
    assert [] == protected.calls


@pytest.mark.parametrize("path", ["/?key={key}", "/?api_key={key}", "/?access_token={key}"])
async def test_key_in_the_query_is_ignored(protected, server, path):
    assert 401 == (await server.request("GET", path.format(key=protected.key))).status


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/none"), ("GET", "//"), ("DELETE", "/"), ("HEAD", "/"), ("OPTIONS", "/"), ("GET", "/health/x")],
)
async def test_unknown_paths_and_methods_also_require_a_key(server, method, path):
    assert 401 == (await server.request(method, path)).status


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_requires_no_key(server, path):
    assert 200 == (await server.request("GET", path)).status


async def test_version_is_named_to_clients_that_may_use_the_daemon(protected, server):
    for headers, version in (([], None), ([f"x-api-key: {protected.key}"], __version__), (["x-api-key: no"], None)):
        assert version == (await server.request("GET", "/", *headers)).headers.get("Osaurus-Version")
    assert (await server.request("GET", "/health")).headers.get("Osaurus-Version") is None

    protected.required = False
    for path in ("/", "/health", "/none"):
        assert __version__ == (await server.request("GET", path)).headers["Osaurus-Version"]


async def test_preflight_requires_no_key_but_the_request_after_it_does(protected, server):
    origin = "Origin: http://localhost:3000"
    requested = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type"]
    preflight = await server.request("OPTIONS", "/", origin, *requested)
    assert 204 == preflight.status
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]

    rejected = await server.request("POST", "/", origin, "Content-Type: application/json", body=b"{}")
    assert (401, "http://localhost:3000") == (rejected.status, rejected.headers["Access-Control-Allow-Origin"])


async def test_key_is_checked_before_the_body_is_read(protected, server):
    async with connected(server) as (reader, writer):
        writer.write(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
        )
        async with asyncio.timeout(60):
            assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n")
    assert [] == protected.calls


async def test_credentials_are_ignored_where_no_key_is_required(protected, server):
    protected.required = False
    for header in ("Authorization: Bearer not-needed", "Authorization: Basic x", "x-api-key: ", "X: y"):
        assert 200 == (await server.request("GET", "/", header)).status


async def test_revoked_key_is_rejected_on_an_open_connection(protected, server):
    request = f"GET / HTTP/1.1\r\nHost: localhost\r\nx-api-key: {protected.key}\r\n\r\n".encode()
    async with connected(server) as (reader, writer):
        async with asyncio.timeout(60):
            writer.write(request)
            assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n")
            await reader.readuntil(b"hello")
            protected.keys.revoke(protected.keys.infos()[0].id)
            writer.write(request)
            assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n")


async def test_last_use_is_saved_once_an_hour(protected, server, tmp_path):
    key = f"x-api-key: {protected.key}"
    await server.request("GET", "/", key)
    first = (tmp_path / "keys.json").stat().st_mtime_ns
    assert json.loads((tmp_path / "keys.json").read_bytes())["keys"][0]["last_used"] > 0
    for _ in range(3):
        await server.request("GET", "/", key)
    # One more where the hour changes meanwhile.
    assert len({first, (tmp_path / "keys.json").stat().st_mtime_ns}) <= 2


async def test_full_disk_does_not_reject_valid_keys(protected, server, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert 200 == (await server.request("GET", "/", f"x-api-key: {protected.key}")).status


async def test_keys_are_never_logged(protected, logged, server):
    for header in (
        f"Authorization: Bearer {protected.key}",
        "x-api-key: sk-osaurus-wrong",
        "Authorization: Basic secret",
    ):
        await server.request("GET", "/?key=secret", header)
    text = json.dumps(logged())
    assert "request" in text
    assert protected.key not in text
    assert "sk-osaurus-" not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("addresses", "exposed"),
    [
        (LOOPBACK, False),
        (["127.0.0.2"], False),
        (["::ffff:127.0.0.1"], False),
        (["0.0.0.0"], True),
        (["::"], True),
        (["192.168.1.5"], True),
        (["fe80::1%eth0"], True),
        (["fd00::1"], True),
        (["::ffff:192.168.1.5"], True),
        (["127.0.0.1", "192.168.1.5"], True),
    ],
)
def test_any_address_but_loopback_is_exposed(keys, addresses, exposed):
    assert exposed == AuthPolicy(addresses, keys).exposed


@pytest.mark.parametrize(
    ("addresses", "settings", "local", "remote"),
    [
        (LOOPBACK, {}, False, False),
        (LOOPBACK, {"require_key": True}, True, True),
        (LOOPBACK, {"require_key": True, "insecure": True}, True, True),
        (LOOPBACK, {"require_key": True, "trust_loopback": True}, True, True),
        (["0.0.0.0"], {}, True, True),
        (["0.0.0.0"], {"trust_loopback": True}, False, True),
        (["0.0.0.0"], {"insecure": True}, False, False),
        (["0.0.0.0"], {"require_key": True, "insecure": True, "trust_loopback": True}, True, True),
        # The configured host does not matter: the service manager may have opened the sockets.
        (["0.0.0.0"], {"host": "localhost"}, True, True),
        (LOOPBACK, {"host": "0.0.0.0"}, False, False),
    ],
)
def test_keys_are_required_by_bound_address_and_configuration(keys, addresses, settings, local, remote):
    policy, server = AuthPolicy(addresses, keys), Server(**settings)

    assert [local] * 3 == [policy.requires_key(server, FakeRequest(FakeTransport(peer))) for peer in LOCAL_PEERS]
    assert [remote] * 2 == [policy.requires_key(server, FakeRequest(FakeTransport(peer))) for peer in REMOTE_PEERS]


def test_closed_connection_is_not_trusted(keys):
    policy, server = AuthPolicy(["0.0.0.0"], keys), Server(trust_loopback=True)
    assert policy.requires_key(server, FakeRequest(None))
    assert policy.requires_key(server, FakeRequest(FakeTransport(None)))


@pytest.mark.parametrize(
    ("addresses", "settings", "param"),
    [
        (["0.0.0.0", "::1"], {}, "server.host"),
        (["0.0.0.0"], {"trust_loopback": True}, "server.host"),
        (LOOPBACK, {"require_key": True}, "server.require_key"),
    ],
)
def test_check_fails_if_a_key_is_required_but_none_exists(keys, addresses, settings, param):
    policy, server = AuthPolicy(addresses, keys), Server(**settings)
    with pytest.raises(ConfigError) as error:
        policy.check(server)
    assert param == error.value.param
    for way_out in ('"osaurusctl key create"', "`server.host`", "`--insecure`"):
        assert way_out in error.value.message
    assert "::1" not in error.value.message

    key = keys.create()
    policy.check(server)
    assert [] == policy.faults(server)
    keys.revoke(key.id)
    assert "there is none" in policy.faults(server)[0]


@pytest.mark.parametrize(("addresses", "settings"), [(LOOPBACK, {}), (["0.0.0.0"], {"insecure": True})])
def test_check_passes_if_no_key_is_required(keys, addresses, settings):
    policy, server = AuthPolicy(addresses, keys), Server(**settings)
    policy.check(server)
    assert [] == policy.faults(server)


def test_check_reports_a_damaged_key_file(tmp_path):
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.damaged\.json"):
        AuthPolicy(["0.0.0.0"], ApiKeys(tmp_path / "keys.json")).check(Server())
