"""TLS with the files that the configuration names, and clients that do not speak it."""

import asyncio
import os
import shutil
import socket
import ssl

import pytest
import trustme
from aiohttp import web

from osaurusd.config import Config, Server
from osaurusd.errors import ConfigError
from osaurusd.http import tls
from osaurusd.http.app import make_app, open_app

PATIENCE_SECONDS = 30
PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def issue(authority, tmp_path):
    """Writes a certificate and its key under a name; returns the two paths."""

    def issue(name, host="localhost"):
        made = authority.issue_cert(host)
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key

    return issue


def server(certificate=None, key=None):
    return Server(tls_certificate=certificate and str(certificate), tls_key=key and str(key))


def test_without_files_there_is_no_tls():
    assert tls.of(Server()) is None


def test_old_versions_are_not_spoken(issue):
    context = tls.of(server(*issue("a"))).context
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version


def test_both_files_are_needed(issue):
    certificate, key = issue("a")
    with pytest.raises(ConfigError, match=r"`server\.tls_certificate` is set and `server\.tls_key` is not") as error:
        tls.of(server(certificate=certificate))
    assert "server.tls_key" == error.value.param
    with pytest.raises(ConfigError, match=r"`server\.tls_key` is set and `server\.tls_certificate` is not"):
        tls.of(server(key=key))


def encrypted(authority, path):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    plain = serialization.load_pem_private_key(authority.issue_cert("x").private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"word")
    path.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))


def test_files_that_cannot_be_used_are_told_apart(issue, authority, tmp_path):
    certificate, key = issue("a")
    other_key = issue("b")[1]
    garbage, empty, locked = tmp_path / "garbage", tmp_path / "empty", tmp_path / "locked"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    empty.touch()
    encrypted(authority, locked)
    for settings, param, message in [
        (server(tmp_path / "none", key), "tls_certificate", "No such file"),
        (server(certificate, tmp_path / "none"), "tls_key", "No such file"),
        (server(tmp_path, key), "tls_certificate", "Is a directory"),
        (server(garbage, key), "tls_certificate", "no certificate in PEM form"),
        (server(empty, key), "tls_certificate", "no certificate in PEM form"),
        (server(key, key), "tls_certificate", "no certificate in PEM form"),
        (server(certificate, certificate), "tls_key", "no private key in PEM form"),
        (server(certificate, garbage), "tls_key", "no private key in PEM form"),
        (server(certificate, empty), "tls_key", "no private key in PEM form"),
        (server(certificate, locked), "tls_key", "without a passphrase"),
        (server(certificate, other_key), "tls_key", "is not the key of the certificate"),
        (server("relative.pem", key), "tls_certificate", "no absolute path"),
        (server("~nobody-of-this-name/a.pem", key), "tls_certificate", "no absolute path"),
        (server(certificate, "/\0"), "tls_key", "null byte"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            tls.of(settings)
        assert f"server.{param}" == error.value.param
        assert f"`server.{param}`" in error.value.message


def test_a_path_may_begin_with_the_users_home(issue, monkeypatch, tmp_path):
    issue("a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tls.of(Server(tls_certificate="~/a.pem", tls_key="~/a.key"))


@pytest.mark.parametrize(("mode", "is_fault"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True)])
def test_a_key_that_others_can_read_is_a_fault(issue, mode, is_fault):
    certificate, key = issue("a")
    key.chmod(mode)
    fault = tls.of(server(certificate, key)).fault
    assert is_fault == (fault is not None and str(key) in fault)


def test_a_key_of_roots_may_have_a_group_that_reads_it(issue):
    certificate, key = issue("a")
    key.chmod(0o640)
    assert (os.geteuid() == 0) == (tls.of(server(certificate, key)).fault is None)


class Served:
    """An application behind TLS."""

    def __init__(self, settings, secured, listener, authority):
        self.settings = settings
        self.tls = secured
        self.port = listener.getsockname()[1]
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)
        self.held, self.given_up = asyncio.Event(), asyncio.Event()

    async def ask(self, **options):
        """A whole answer, and the certificate it came with."""
        reader, writer = await self.open(**options)
        writer.write(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await reader.read()
        certificate = writer.get_extra_info("peercert")
        writer.close()
        return answer, certificate

    async def open(self, **options):
        known = {"ssl": self.trust, "server_hostname": "localhost", **options}
        return await asyncio.open_connection("127.0.0.1", self.port, **known)

    async def fate_of(self, data):
        """What a client gets that sends these bytes in the clear."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def served(issue, authority):
    settings = server(*issue("live"))
    secured = tls.of(settings)
    app = make_app(Config())

    async def hello(request):
        return web.Response(text=f"hello over {request.scheme}")

    async def stream(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(bytes(65536))
        return response

    async def hold(request):
        served.held.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            served.given_up.set()
            raise

    app.router.add_get("/", hello)
    app.router.add_get("/stream", stream)
    app.router.add_get("/hold", hold)
    listener = socket.create_server(("127.0.0.1", 0))
    runner = await open_app(app, [listener], secured)
    served = Served(settings, secured, listener, authority)
    yield served
    await runner.cleanup()


async def test_requests_are_answered_over_tls(served):
    answer, _ = await served.ask()
    assert b"HTTP/1.1 200 OK" in answer
    assert answer.endswith(b"hello over https")


async def test_a_stream_that_is_longer_than_every_buffer_arrives_whole(served):
    reader, writer = await served.open()
    writer.write(b"GET /stream HTTP/1.0\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await reader.readuntil(b"\r\n\r\n")
        assert bytes(64 * 65536) == await reader.read(-1)
    writer.close()


@pytest.mark.parametrize("abrupt", [True, False])
async def test_a_client_that_hangs_up_ends_its_request(served, abrupt):
    _, writer = await served.open()
    writer.write(PLAIN.replace(b"GET /", b"GET /hold"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await served.held.wait()
        writer.transport.abort() if abrupt else writer.close()
        await served.given_up.wait()


async def test_a_client_of_an_old_version_is_refused(served):
    served.trust.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        served.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await served.ask()


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 508,
        bytes(9),
    ],
    ids=["plain HTTP", "a length that lies", "a bad hello", "zeros"],
)
async def test_what_is_no_tls_is_hung_up_on_without_a_word_in_the_log(served, logged, data):
    fate = await served.fate_of(data)

    assert b"HTTP" not in fate
    assert b"HTTP/1.1 200 OK" in (await served.ask())[0]
    assert [] == [line for line in logged() if line["level"] not in ("info", "debug")]


async def test_garbage_after_the_handshake_ends_only_that_connection(served, logged):
    other_reader, other_writer = await served.open()
    _, writer = await served.open()
    # Around TLS, straight into the socket.
    os.write(writer.get_extra_info("socket").fileno(), b"no record of TLS")
    writer.transport.abort()
    other_writer.write(PLAIN)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert b"HTTP/1.1 200 OK" in await other_reader.readuntil(b"\r\n")
    other_writer.close()
    assert [] == [line for line in logged() if line["level"] not in ("info", "debug")]


async def test_a_handshake_that_does_not_go_on_is_ended_and_holds_up_nobody(issue, authority, logged, monkeypatch):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    runner = await open_app(make_app(Config()), [listener], tls.of(server(*issue("live"))))
    served = Served(None, None, listener, authority)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"\x16\x03\x01\x02\x00")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b"" == await reader.read()
        writer.close()
    finally:
        await runner.cleanup()
    assert [] == [line for line in logged() if line["level"] not in ("info", "debug")]


async def test_renewed_files_are_used_from_the_next_connection_on(served, issue):
    before = (await served.ask())[1]
    issue("live")
    assert before == (await served.ask())[1]
    served.tls.renew(served.settings)
    after = (await served.ask())[1]
    assert before["serialNumber"] != after["serialNumber"]


async def test_files_that_are_not_wanted_any_more_are_not_looked_for(served, issue, tmp_path):
    before = (await served.ask())[1]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    served.tls.renew(server(*issue("next")))
    served.tls.renew(Server())
    assert before == (await served.ask())[1]


async def test_files_that_cannot_be_renewed_leave_what_was(served, issue):
    before = (await served.ask())[1]
    issue("live")[1].write_text("half a file")
    with pytest.raises(ConfigError, match=r"server\.tls_key"):
        served.tls.renew(served.settings)
    assert before == (await served.ask())[1]
