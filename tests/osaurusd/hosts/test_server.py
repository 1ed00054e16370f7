"""The control server: what unpaired clients, paired hosts and removed hosts can do."""

import asyncio
import contextlib
import random
import ssl

import pytest
from aiohttp import web

from osaurusd.errors import HostUnreachable, InvalidRequest, NotFound
from osaurusd.hosts import server
from osaurusd.hosts.identity import IdentityFile
from osaurusd.hosts.tls import client_context, pairing_context
from osaurusd.http.routes import Route

from .nodes import pair, running, unpaired_client

REQUEST = b"GET /v0/whoami HTTP/1.1\r\nHost: x\r\n\r\n"
TIMEOUT_SECONDS = 60


@pytest.fixture
async def foreign(b, tmp_path):
    """The context of a client with a certificate of its own, which is not paired."""
    identity = await IdentityFile(tmp_path / "foreign.pem").get()
    context = pairing_context()
    context.load_cert_chain(identity.file)
    return context


async def is_served(a):
    """Whether a paired host is served."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return "a" == await a.whoami("b")


async def response_to(node, data, context=None, *, tls=True):
    """What an unpaired client receives after sending some bytes."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), unpaired_client(node, context, tls=tls) as connection:
            with contextlib.suppress(OSError):
                await connection.send(data)
                if connection.writer.can_write_eof():
                    connection.writer.write_eof()
            return await connection.receive()
    except (OSError, ssl.SSLError):
        return b""


async def test_a_foreign_certificate_gets_nothing(paired, foreign):
    a, b = paired
    assert b"" == await response_to(b, REQUEST, foreign)
    assert await is_served(a)


async def test_the_certificate_of_a_paired_host_without_its_key_is_rejected(paired, tmp_path):
    """The certificate of a host is public: only the handshake proves that a client has the key."""
    a, b = paired
    other = await IdentityFile(tmp_path / "other.pem").get()
    mixed = tmp_path / "mixed.pem"
    key = other.file.read_text().partition("-----BEGIN CERT")[0]
    mixed.write_text(key + b.hosts.registry.get("a").certificate)
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        pairing_context().load_cert_chain(mixed)
    assert await is_served(a)


async def test_http_without_a_certificate_gets_nothing(paired):
    a, b = paired
    assert b"" == await response_to(b, REQUEST)
    assert await is_served(a)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b'{"version": 1}\n',
        b'{"version": "1", "nonce": "%s"}\n' % (b"0" * 64),
        b'{"version": 1, "nonce": "short"}\n',
        b'{"version": 1, "nonce": "%s"}\n' % (b"0" * 129),
        b'{"x": ' + b"[" * 8000 + b"\n",
        b"\xff\xfe\n",
        b"x" * 100_000,
        b"x" * 100_000 + b"\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda data: repr(data[:20]),
)
async def test_garbage_after_the_handshake_gets_nothing(paired, data, monkeypatch):
    a, b = paired
    monkeypatch.setattr(server, "UNPAIRED_SECONDS", 0.2)
    assert b"" == await response_to(b, data)
    assert await is_served(a)


@pytest.mark.parametrize(
    "data", [b"", REQUEST, b"\x16\x03\x01\xff\xff" + bytes(64), b"SSH-2.0-x\r\n", b"\x00" * 70_000]
)
async def test_garbage_instead_of_a_handshake_gets_no_more_than_an_alert(paired, data):
    a, b = paired
    assert len(await response_to(b, data, tls=False)) <= 7
    assert await is_served(a)


async def test_random_bytes_disturb_nothing(paired, monkeypatch):
    """A small fuzzer, with a fixed seed: bytes before and after the handshake."""
    a, b = paired
    source = random.Random(13)
    with monkeypatch.context() as patch:
        patch.setattr(server, "UNPAIRED_SECONDS", 0.01)
        patch.setattr(server, "HANDSHAKE_SECONDS", 1.0)
        for _ in range(30):
            data = source.randbytes(source.choice([1, 5, 100, 9000]))
            await response_to(b, data, tls=source.random() < 0.5)
    assert await is_served(a)


async def test_tls_1_2_is_refused(paired):
    _, b = paired
    context = pairing_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((OSError, ssl.SSLError)):
        async with unpaired_client(b, context):
            pass


async def test_a_silent_handshake_is_ended(paired, monkeypatch):
    a, b = paired
    with monkeypatch.context() as patch:
        patch.setattr(server, "HANDSHAKE_SECONDS", 0.1)
        async with asyncio.timeout(TIMEOUT_SECONDS), unpaired_client(b, tls=False) as connection:
            assert b"" == await connection.receive()
    assert await is_served(a)


async def test_unpaired_client_that_says_nothing_is_cut_off(paired, monkeypatch):
    a, b = paired
    monkeypatch.setattr(server, "UNPAIRED_SECONDS", 0.1)
    async with asyncio.timeout(TIMEOUT_SECONDS), unpaired_client(b) as connection:
        assert b"" == await connection.receive()
    assert await is_served(a)


async def test_unpaired_client_that_sends_a_byte_at_a_time_is_cut_off(b, monkeypatch):
    monkeypatch.setattr(server, "UNPAIRED_SECONDS", 0.2)
    async with asyncio.timeout(TIMEOUT_SECONDS), unpaired_client(b) as connection:
        with contextlib.suppress(OSError, ssl.SSLError):
            while not connection.reader.at_eof():
                await connection.send(b"{")
                await asyncio.sleep(0.01)
        assert b"" == await connection.receive()


async def test_connections_over_the_limit_are_closed_and_an_open_one_goes_on(paired):
    a, b = paired
    async with (
        contextlib.AsyncExitStack() as stack,
        a.hosts.client.websocket(a.hosts.registry.get("b"), "/v0/echo") as connection,
    ):
        for _ in range(server.MAX_UNPAIRED_PER_ADDRESS):
            await stack.enter_async_context(unpaired_client(b))
        with pytest.raises((OSError, ssl.SSLError)):
            await stack.enter_async_context(unpaired_client(b))
        await connection.send_bytes(b"x")
        assert b"x" == await connection.receive_bytes()
    assert await is_served(a)


async def test_places_of_unpaired_clients_are_free_again_once_they_leave(paired):
    a, b = paired
    for _ in range(3 * server.MAX_UNPAIRED_PER_ADDRESS):
        async with unpaired_client(b):
            pass
    assert await is_served(a)


async def test_an_unknown_path_of_a_paired_host_is_an_ordinary_error(paired):
    a, _ = paired
    host = a.hosts.registry.get("b")
    with pytest.raises(NotFound, match='host "b": the path /v0/unknown does not exist'):
        await a.hosts.client.fetch(host, "/v0/unknown", dict)


async def test_the_admin_api_and_client_apis_are_not_served(paired):
    a, _ = paired
    host = a.hosts.registry.get("b")
    for path in ("/v0/status", "/v0/keys", "/v0/hosts", "/v1/models", "/metrics", "/health", "/"):
        with pytest.raises(NotFound):
            await a.hosts.client.fetch(host, path, dict)


async def test_a_removed_host_is_cut_off_at_once(paired):
    a, b = paired
    host = a.hosts.registry.get("b")
    assert await is_served(a)
    async with a.hosts.client.websocket(host, "/v0/echo") as connection:
        await connection.send_bytes(b"x")
        await connection.receive_bytes()
        await b.hosts.remove("a")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert (await connection.receive()).data is None
    with pytest.raises(HostUnreachable, match="pair the hosts again"):
        await a.whoami("b")


async def test_removing_a_host_ends_the_connections_to_it(paired):
    a, _ = paired
    async with a.hosts.client.websocket(a.hosts.registry.get("b"), "/v0/echo") as connection:
        await a.hosts.remove("b")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert (await connection.receive()).data is None


async def test_a_removed_host_that_stays_connected_gets_nothing(paired):
    """The registry is consulted for each request, should a connection survive the removal."""
    a, b = paired
    context = client_context(await IdentityFile(a.state / "host.pem").get(), a.hosts.registry.get("b"))
    async with unpaired_client(b, context) as connection:
        await connection.send(REQUEST)
        assert (await connection.reader.readline()).startswith(b"HTTP/1.1 200")
        await b.hosts.remove("a")
        with contextlib.suppress(OSError, ssl.SSLError):
            await connection.send(REQUEST)
        assert b"HTTP" not in await connection.receive()


async def test_a_removal_does_not_disturb_other_hosts(tmp_path, paired):
    _, b = paired
    async with running(tmp_path / "c", "127.0.0.1") as c:
        await c.add("b", b.url, (await b.hosts.offer_code()).code, own_name="c")
        async with c.hosts.client.websocket(c.hosts.registry.get("b"), "/v0/echo") as connection:
            await b.hosts.remove("a")
            await connection.send_bytes(b"x")
            assert b"x" == await connection.receive_bytes()


async def test_large_messages_travel_both_ways(paired):
    a, _ = paired
    message = bytes(5_000_000)
    async with a.hosts.client.websocket(a.hosts.registry.get("b"), "/v0/echo") as connection:
        await connection.send_bytes(message)
        assert message == await connection.receive_bytes()


async def test_an_error_of_a_handler_arrives_as_the_same_error(tmp_path, a):
    async def fail(_: web.Request) -> web.Response:
        raise InvalidRequest("`x`: too small", param="x")

    async with running(tmp_path / "c", routes=[Route("POST", "/v0/fail", fail)]) as c:
        await pair(a, c)
        with pytest.raises(InvalidRequest, match='host "b": `x`: too small') as caught:
            await a.hosts.client.fetch(a.hosts.registry.get("b"), "/v0/fail", dict, json={})
        assert "x" == caught.value.param
