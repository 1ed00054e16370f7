"""TLS with the configured files, and clients that do not use it."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl

import pytest
import trustme
from aiohttp import web

from osaurusd.config import Config, Server
from osaurusd.errors import ConfigError
from osaurusd.http import server as http_server
from osaurusd.http.errors import error_response
from osaurusd.http.server import HttpServer
from osaurusd.http.tls import Tls
from tests.streams import close

from .serve import build_app

TIMEOUT_SECONDS = 60
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def issue(ca, tmp_path):
    """Writes a certificate and its key to files of a given name, and returns their paths."""

    def issue(name, host="localhost"):
        issued = ca.issue_cert(host)
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key

    return issue


def settings_for(certificate=None, key=None):
    return Server(tls_certificate=certificate and str(certificate), tls_key=key and str(key))


def test_tls_is_off_without_files():
    assert Tls.from_config(Server()) is None


def test_tls_1_2_is_the_minimum(issue):
    context = Tls.from_config(settings_for(*issue("a"))).context
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version


def test_certificate_and_key_are_both_required(issue):
    certificate, key = issue("a")
    with pytest.raises(ConfigError, match=r"`server\.tls_certificate` is set but `server\.tls_key` is not") as error:
        Tls.from_config(settings_for(certificate=certificate))
    assert "server.tls_key" == error.value.param
    with pytest.raises(ConfigError, match=r"`server\.tls_key` is set but `server\.tls_certificate` is not"):
        Tls.from_config(settings_for(key=key))


def write_encrypted_key(ca, path):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    plain = serialization.load_pem_private_key(ca.issue_cert("x").private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"word")
    path.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))


def test_error_names_the_setting_of_an_unusable_file(issue, ca, tmp_path):
    certificate, key = issue("a")
    other_key = issue("b")[1]
    garbage, empty, locked = tmp_path / "garbage", tmp_path / "empty", tmp_path / "locked"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    empty.touch()
    write_encrypted_key(ca, locked)
    for settings, param, message in [
        (settings_for(tmp_path / "none", key), "tls_certificate", "No such file"),
        (settings_for(certificate, tmp_path / "none"), "tls_key", "No such file"),
        (settings_for(tmp_path, key), "tls_certificate", "Is a directory"),
        (settings_for(garbage, key), "tls_certificate", "does not contain a PEM certificate"),
        (settings_for(empty, key), "tls_certificate", "does not contain a PEM certificate"),
        (settings_for(key, key), "tls_certificate", "does not contain a PEM certificate"),
        (settings_for(certificate, certificate), "tls_key", "does not contain a PEM private key"),
        (settings_for(certificate, garbage), "tls_key", "does not contain a PEM private key"),
        (settings_for(certificate, empty), "tls_key", "does not contain a PEM private key"),
        (settings_for(certificate, locked), "tls_key", "without passphrase"),
        (settings_for(certificate, other_key), "tls_key", "is not the key of the certificate"),
        (settings_for("relative.pem", key), "tls_certificate", "not an absolute path"),
        (settings_for("~no-such-user/a.pem", key), "tls_certificate", "not an absolute path"),
        (settings_for(certificate, "/\0"), "tls_key", "null byte"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            Tls.from_config(settings)
        assert f"server.{param}" == error.value.param
        assert f"`server.{param}`" in error.value.message


def test_path_may_start_with_the_home_directory(issue, monkeypatch, tmp_path):
    issue("a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Tls.from_config(Server(tls_certificate="~/a.pem", tls_key="~/a.key"))


@pytest.mark.parametrize(("mode", "is_fault"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True)])
def test_key_readable_by_other_users_is_a_fault(issue, mode, is_fault):
    certificate, key = issue("a")
    key.chmod(mode)
    fault = Tls.from_config(settings_for(certificate, key)).fault
    assert is_fault == (fault is not None and str(key) in fault)


def test_key_of_root_may_be_readable_by_its_group(issue):
    certificate, key = issue("a")
    key.chmod(0o640)
    assert (os.geteuid() == 0) == (Tls.from_config(settings_for(certificate, key)).fault is None)


class TlsServer:
    """An application served over TLS."""

    def __init__(self, settings, tls, listener, ca):
        self.settings = settings
        self.tls = tls
        self.port = listener.getsockname()[1]
        self.trust = ssl.create_default_context()
        ca.configure_trust(self.trust)
        self.waiting, self.cancelled = asyncio.Event(), asyncio.Event()

    async def request(self):
        """Send a request, and return the whole response and the server's certificate."""
        async with self.connected() as (reader, writer), asyncio.timeout(TIMEOUT_SECONDS):
            writer.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            return await reader.read(), writer.get_extra_info("peercert")

    @contextlib.asynccontextmanager
    async def connected(self):
        """Open a connection, which is closed at the end of the block, however that ends."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname="localhost"
        )
        try:
            yield reader, writer
        finally:
            await close(writer)

    async def send_plain(self, data):
        """Send bytes without TLS, and return what the server sends until it closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            await close(writer)

    async def hello(self, request):
        return web.Response(text=f"hello over {request.scheme}")

    async def stream(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(bytes(65536))
        return response

    async def wait(self, request):
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
async def served(issue, ca):
    settings = settings_for(*issue("live"))
    tls = Tls.from_config(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    served = TlsServer(settings, tls, listener, ca)
    app = build_app(("GET", "/", served.hello), ("GET", "/stream", served.stream), ("GET", "/wait", served.wait))
    server = HttpServer(app, Config, error_response)
    await server.start([listener], tls)
    yield served
    await server.close()


async def test_requests_are_served_over_tls(served):
    response, _ = await served.request()
    assert b"HTTP/1.1 200 OK" in response
    assert response.endswith(b"hello over https")


async def test_long_stream_arrives_completely(served):
    async with served.connected() as (reader, writer), asyncio.timeout(TIMEOUT_SECONDS):
        writer.write(b"GET /stream HTTP/1.0\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert bytes(64 * 65536) == await reader.read(-1)


@pytest.mark.parametrize("abrupt", [True, False])
async def test_disconnect_cancels_the_request(served, abrupt):
    async with served.connected() as (_, writer), asyncio.timeout(TIMEOUT_SECONDS):
        writer.write(REQUEST.replace(b"GET /", b"GET /wait"))
        await served.waiting.wait()
        writer.transport.abort() if abrupt else writer.close()
        await served.cancelled.wait()


async def test_client_with_an_old_tls_version_is_rejected(served):
    served.trust.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        served.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await served.request()
    # The server closes the rejected connection before it accepts another.
    served.trust.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert b"HTTP/1.1 200 OK" in (await served.request())[0]


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 508,
        bytes(9),
    ],
    ids=["plain HTTP", "wrong length", "a bad hello", "zeros"],
)
async def test_clients_without_tls_are_disconnected_without_log_noise(served, logged, data):
    received = await served.send_plain(data)

    assert b"HTTP" not in received
    assert b"HTTP/1.1 200 OK" in (await served.request())[0]
    assert [] == [line for line in logged() if line["level"] not in ("info", "debug")]


async def test_garbage_after_the_handshake_closes_only_that_connection(served, logged):
    async with served.connected() as (other_reader, other_writer), asyncio.timeout(TIMEOUT_SECONDS):
        async with served.connected() as (_, writer):
            # Bypasses TLS.
            os.write(writer.get_extra_info("socket").fileno(), b"not a TLS record")
            writer.transport.abort()
        other_writer.write(REQUEST)
        assert b"HTTP/1.1 200 OK" in await other_reader.readuntil(b"\r\n")
    assert [] == [line for line in logged() if line["level"] not in ("info", "debug")]


async def test_reloaded_certificate_is_used_for_new_connections(served, issue):
    before = (await served.request())[1]
    issue("live")
    assert before == (await served.request())[1]
    served.tls.reload(served.settings)
    after = (await served.request())[1]
    assert before["serialNumber"] != after["serialNumber"]


async def test_reload_ignores_files_that_are_no_longer_configured(served, issue, tmp_path):
    before = (await served.request())[1]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    served.tls.reload(settings_for(*issue("next")))
    served.tls.reload(Server())
    assert before == (await served.request())[1]


async def test_failed_reload_keeps_the_previous_certificate(served, issue):
    before = (await served.request())[1]
    issue("live")[1].write_text("half a file")
    with pytest.raises(ConfigError, match=r"server\.tls_key"):
        served.tls.reload(served.settings)
    assert before == (await served.request())[1]


def receive_response(port, context):
    """Return the server's whole response over a connection that is left open at this end, and the connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
    connection = context.wrap_socket(connection, server_hostname="localhost")
    connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    return b"".join(iter(lambda: connection.recv(65536), b"")), connection


async def test_no_connection_is_open_once_the_server_is_closed(served, monkeypatch):
    monkeypatch.setattr(http_server, "TLS_SHUTDOWN_SECONDS", 0.3)
    monkeypatch.setattr(http_server, "CLOSE_SECONDS", TIMEOUT_SECONDS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(build_app(("GET", "/", served.hello)), Config, error_response)
    await server.start([listener], served.tls)
    response, client = await asyncio.to_thread(receive_response, listener.getsockname()[1], served.trust)
    with client:
        assert b"HTTP/1.1 200 OK" in response
        await server.close()
        assert server.connection_count == 0


async def test_connection_whose_handshake_ends_after_the_server_is_closed_is_aborted(served, monkeypatch):
    accepted, accept = asyncio.Event(), HttpServer.new_connection

    def new_connection(server):
        accepted.set()
        return accept(server)

    monkeypatch.setattr(HttpServer, "new_connection", new_connection)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(build_app(("GET", "/", served.hello)), Config, error_response)
    await server.start([listener], served.tls)
    with socket.create_connection(listener.getsockname(), TIMEOUT_SECONDS) as connection:
        await accepted.wait()
        await server.close()
        client = await asyncio.to_thread(served.trust.wrap_socket, connection, server_hostname="localhost")
        with client:
            client.settimeout(TIMEOUT_SECONDS)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.to_thread(client.recv, 1) == b""
    assert server.connection_count == 0


async def test_stalled_handshake_is_aborted(served, logged, monkeypatch):
    monkeypatch.setattr(http_server, "TLS_HANDSHAKE_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(build_app(), Config, error_response)
    await server.start([listener], served.tls)
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"\x16\x03\x01\x02\x00")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await reader.read() == b""
        await close(writer)
    finally:
        await server.close()
    assert [line for line in logged() if line["level"] not in ("info", "debug")] == []
