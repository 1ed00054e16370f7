"""Only requests for trusted hosts reach a handler."""

import collections
import ipaddress
import socket

import psutil
import pytest
from aiohttp import web

from osaurusd.config import Server
from osaurusd.http import trusted_hosts
from osaurusd.http.trusted_hosts import BoundHosts, configured_hosts

from .serve import build_app, serving

Address = collections.namedtuple("Address", "family address")


@pytest.fixture
def calls():
    """The paths for which the handler was called."""
    return []


@pytest.fixture
async def server(calls):
    settings = Server(allowed_hosts=["Studio.local", "fd00::1"])

    async def hello(request):
        calls.append(request.path)
        return web.Response(text="hello")

    app = build_app(("GET", "/", hello), middlewares=[trusted_hosts.trusted_hosts(lambda: settings)])
    async with serving(app) as server:
        yield server


async def test_trusted_hosts_follow_the_configuration_in_force():
    settings = [Server()]
    app = build_app(middlewares=[trusted_hosts.trusted_hosts(lambda: settings[-1])])
    async with serving(app) as server:
        assert (await server.request(host="studio.local")).status == 403
        settings.append(Server(allowed_hosts=["studio.local"]))
        assert (await server.request(host="studio.local")).status == 404


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost:1",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]",
        "[0000::0001]:8080",
        "studio.local",
        "STUDIO.local:8080",
        "[fd00::1]:8080",
        "[FD00:0::1]:8080",
    ],
)
async def test_loopback_and_configured_hosts_are_trusted(server, calls, host):
    response = await server.request(host=host)
    assert (response.status, response.body) == (200, b"hello")
    assert calls == ["/"]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost:",
        "localhost:65536",
        "[localhost]",
        "[127.0.0.1]",
        "[::1%lo]",
        "[::1%25lo]",
        "[::1]x",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "0.0.0.0:8080",
        "[::]",
        "[::]:8080",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "evil-localhost",
        "xlocalhost",
        "localhost.",
        "localhost.:8080",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "::1",
        "[::1",
        "[::ffff:127.0.0.1]",
        "user@localhost",
        "user:secret@localhost:8080",
        "localhost@evil.example",
        "localhost:8080@evil.example",
        "localhost:evil.example",
        "localhost:80:80",
        "localhost, evil.example",
        "localhost/evil.example",
        "local host",
        "\xff",
    ],
)
async def test_other_hosts_are_rejected_before_the_handler(server, calls, host):
    response = await server.request(host=host)
    assert response.status == 403
    assert response.error["code"] == "forbidden"
    assert calls == []


async def test_error_names_the_host_and_how_to_allow_it(server):
    response = await server.request(host="evil.example:81")
    assert '"evil.example:81"' in response.error["message"]
    assert "`server.allowed_hosts`" in response.error["message"]
    assert '`allowed_hosts = ["evil.example"]` under `[server]`' in response.error["message"]
    assert '"osaurusctl reload"' in response.error["message"]


@pytest.mark.parametrize("host", ["", "localhost@evil.example", "x" * 4000, "a b", "[::1"])
async def test_error_suggests_no_setting_for_an_invalid_host(server, host):
    message = (await server.request(host=host)).error["message"]
    assert "allowed_hosts = [" not in message
    assert len(message) < 300


@pytest.mark.parametrize("path", ["/", "//", "/none"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
async def test_untrusted_host_is_rejected_for_every_method_and_path(server, calls, method, path):
    response = await server.request(method, path, host="evil.example")
    assert response.status == 403
    assert calls == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", id="missing"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="missing, HTTP 1.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n", id="twice"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\nConnection: close\r\n\r\n", id="two"),
    ],
)
async def test_missing_or_repeated_host_header_is_a_bad_request(server, calls, data):
    assert (await server.send(data)).status == 400
    assert calls == []


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost:8080/", "localhost:8080", 200),
        ("http://LOCALHOST/", "localhost", 200),
        ("http://localhost/", "evil.example", 403),
        ("http://evil.example/", "localhost", 403),
        ("http://evil.example:80/", "localhost", 403),
        ("https://localhost@evil.example/", "localhost", 403),
        ("http://user@localhost/", "localhost", 403),
        ("http://0.0.0.0/", "localhost", 403),
        ("//evil.example/", "localhost", 404),
    ],
)
async def test_absolute_target_must_name_the_trusted_host(server, calls, target, host, status):
    assert (await server.request("GET", target, host=host)).status == status
    assert calls == (["/"] if status == 200 else [])


async def test_every_request_of_a_connection_is_checked(server, calls):
    response = await server.send(
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert b"HTTP/1.1 403" in response.body
    assert calls == ["/"]


@pytest.mark.parametrize(
    ("settings", "additional"),
    [
        (Server(), set()),
        (Server(host="127.0.0.1"), set()),
        (Server(host="192.0.2.1"), {"192.0.2.1"}),
        (Server(host="::1"), set()),
        (Server(host="0:0:0:0:0:0:0:1"), set()),
        (Server(host="FD00:0::1"), {"[fd00::1]"}),
        (Server(host="fd00::1"), {"[fd00::1]"}),
        (Server(host="Studio.local"), {"studio.local"}),
        (Server(host="0.0.0.0"), set()),
        (Server(host="::"), set()),
        (Server(host="0:0:0:0:0:0:0:0"), set()),
        (Server(host=""), set()),
        (Server(allowed_hosts=["A.example", "::2", "[::3]"]), {"a.example", "[::2]", "[::3]"}),
        (Server(host="0.0.0.0", allowed_hosts=["a.example"]), {"a.example"}),
    ],
)
def test_configured_hosts_are_loopback_the_bound_host_and_allowed_hosts(settings, additional):
    assert configured_hosts(settings) == {"localhost", "127.0.0.1", "[::1]"} | additional


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["127.0.0.1", "::1"], set()),
        (["192.168.1.5", "127.0.0.1"], {"192.168.1.5", "127.0.0.1"}),
        (["FD00:0::1"], {"[fd00::1]"}),
        (["fe80::1%eth0"], {"[fe80::1]"}),
    ],
)
def test_bound_addresses_are_trusted_unless_all_are_loopback(addresses, names):
    assert names == BoundHosts(addresses).names()


@pytest.mark.parametrize(
    ("hostname", "names"),
    [("Studio", {"studio", "studio.local"}), ("studio.fritz.box", {"studio.fritz.box"})],
)
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_wildcard_address_trusts_every_name_of_the_machine(monkeypatch, wildcard, hostname, names):
    interfaces = {
        "eth0": [
            Address(socket.AF_INET, "192.168.1.5"),
            Address(socket.AF_INET6, "fe80::1%eth0"),
            Address(socket.AF_UNIX, "00:11:22:33:44:55"),
        ]
    }
    now = [100.0]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    hosts = BoundHosts([wildcard], clock=lambda: now[0])
    assert names | {"192.168.1.5", "[fe80::1]"} == hosts.names()

    interfaces["eth0"] = [Address(socket.AF_INET, "10.0.0.7")]
    now[0] += trusted_hosts.ADDRESS_CACHE_SECONDS
    assert names | {"10.0.0.7"} == hosts.names()


async def test_daemon_on_all_addresses_serves_its_own_names_only():
    settings = Server(host="0.0.0.0", allowed_hosts=["studio.example"])
    check = trusted_hosts.trusted_hosts(lambda: settings, BoundHosts(["0.0.0.0"]))
    own = {name.lower() for name in (socket.gethostname(), "studio.example", "localhost", "127.0.0.1")}
    own |= {str(address) for address in own_addresses()}
    async with serving(build_app(middlewares=[check])) as served:
        assert {404} == {(await served.request(host=f"{name}:8080")).status for name in own}
        for name in ("0.0.0.0", "[::]", "evil.example", "192.0.2.77", f"{socket.gethostname()}.evil.example"):
            response = await served.request(host=name)
            assert 403 == response.status
            assert "server.allowed_hosts" in response.error["message"]


def own_addresses():
    """Return the IPv4 address that this machine uses for outgoing connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only chooses an address to send from.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [ipaddress.ip_address(probe.getsockname()[0])]
