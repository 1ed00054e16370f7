"""Downloads of images by URL: allowed hosts, addresses, redirects and limits."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl

import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver

from osaurusd.config import Vision
from osaurusd.errors import InvalidRequest
from osaurusd.http.fetch import MAX_REDIRECTS, UrlFetcher, is_public
from osaurusd.url_hosts import is_allowed, parse_pattern

FILE = b"\x89PNG" + bytes(100_000)
HOST = "images.example.com"


class FakeResolver(AbstractResolver):
    """Resolves each name to its addresses, one list per call; the last one is repeated."""

    def __init__(self, **addresses):
        self._addresses = {name.replace("_", "."): lists for name, lists in addresses.items()}
        self.calls = []

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        self.calls.append(host)
        lists = self._addresses[host]
        addresses = lists.pop(0) if len(lists) > 1 else lists[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in addresses
        ]

    async def close(self):
        pass


class Site:
    """A server on loopback. `handler` responds to requests, which are recorded."""

    def __init__(self):
        self.requests = []
        self.port = 0
        self.handler = self.respond

    async def handle(self, request):
        self.requests.append(request)
        return await self.handler(request)

    async def respond(self, request):
        return web.Response(body=FILE, content_type="text/html")

    def url(self, path="/x.png", host=HOST, scheme="http"):
        return f"{scheme}://{host}:{self.port}{path}"

    def settings(self, **fields):
        return Vision(**{"allowed_url_hosts": [f"{HOST}:{self.port}"], **fields})


@contextlib.asynccontextmanager
async def running_site(tls=None):
    site = Site()
    runner = web.ServerRunner(web.Server(site.handle))
    await runner.setup()
    try:
        listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await listener.start()
        site.port = runner.addresses[0][1]
        yield site
        async with asyncio.timeout(60):
            while runner.server.connections:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)
    finally:
        await runner.cleanup()


@pytest.fixture
async def site():
    async with running_site() as site:
        yield site


def moved(target):
    """Return a redirect."""
    return web.Response(status=302, headers={"Location": target})


def local_fetcher(**addresses):
    """Return a fetcher that may connect to 127.0.0.1."""
    resolver = FakeResolver(**{HOST.replace(".", "_"): [["127.0.0.1"]], **addresses})
    return UrlFetcher(lambda address: str(address) == "127.0.0.1", resolver)


async def rejection(fetcher, url, settings):
    """Return the message of the error."""
    with pytest.raises(InvalidRequest) as raised:
        await fetcher.fetch(url, settings)
    return raised.value.message


async def test_file_of_an_allowed_host_is_downloaded_whatever_its_declared_type(site):
    assert FILE == await local_fetcher().fetch(site.url(), site.settings())
    (request,) = site.requests
    assert "identity" == request.headers["Accept-Encoding"]
    assert not {"Cookie", "Authorization", "Referer"} & set(request.headers)


async def test_proxy_of_the_environment_is_not_used(site, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    assert FILE == await local_fetcher().fetch(site.url(), site.settings())


async def test_certificate_of_the_host_is_checked(site, monkeypatch, tmp_path):
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST).configure_cert(tls)
    async with running_site(tls) as site:
        assert "certificate" in await rejection(local_fetcher(), site.url(scheme="https"), site.settings())
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert FILE == await local_fetcher().fetch(site.url(scheme="https"), site.settings())


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example.com/x.png",
        f"http://{HOST}.evil.example/x.png",
        f"http://{HOST}:1/x.png",
        "http://127.0.0.1/x.png",
    ],
)
async def test_other_host_is_rejected_without_a_request(site, url):
    assert "`vision.allowed_url_hosts`" in await rejection(local_fetcher(), url, site.settings())
    assert [] == site.requests


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "is invalid"),
        ("http:///x.png", "is invalid"),
        ("http://[::1/x.png", "is invalid"),
        (f"http://{HOST}:0/x.png", "is invalid"),
        (f"http://{HOST}:99999/x.png", "is invalid"),
        ("http://" + "a" * 9000, "longer than 8192"),
        (f"http://user:word@{HOST}/x.png", "user name"),
    ],
)
async def test_invalid_url_is_rejected(site, url, reason):
    assert reason in await rejection(local_fetcher(), url, site.settings())


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.64.0.1",
        ),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "192.0.0.192"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1", "64:ff9b:1::1"),
        *("::ffff:127.0.0.1", "::ffff:93.184.216.34", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::", "2001:0:5db8:d822::1"),
    ],
)
def test_address_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "fd12::1", "::ffff:10.0.0.1"])
async def test_host_with_an_address_that_is_not_public_is_never_connected_to(address):
    fetcher = UrlFetcher(resolver=FakeResolver(images_example_com=[[address]]))

    assert "not a host on the public internet" in await rejection(
        fetcher, f"http://{HOST}/x.png", Vision(allowed_url_hosts=["*"])
    )


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_address_is_allowed(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::1%25]",
        "[fe80::1%25]",
        "169.254.169.254",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
    ],
)
async def test_this_machine_is_not_reached_under_any_form_of_its_address(host):
    message = await rejection(UrlFetcher(), f"http://{host}/x.png", Vision(allowed_url_hosts=["*"]))

    reasons = (
        "not a host on the public internet",
        "not a valid IPv6 address",
        "not a canonical IPv4 address",
        "Name or service not known",
    )
    assert any(reason in message for reason in reasons)


async def test_name_is_resolved_once_so_that_a_second_answer_has_no_effect(site):
    fetcher = local_fetcher(images_example_com=[["127.0.0.1"], ["10.0.0.1"]])

    assert FILE == await fetcher.fetch(site.url(), site.settings())


async def test_only_the_checked_addresses_of_a_name_are_used(site):
    fetcher = local_fetcher(images_example_com=[["10.255.255.1", "127.0.0.1"]])

    assert FILE == await fetcher.fetch(site.url(), site.settings())


async def test_redirect_is_followed(site):
    async def redirect(request):
        return await site.respond(request) if request.path == "/b" else moved("/b")

    site.handler = redirect

    assert FILE == await local_fetcher().fetch(site.url("/a"), site.settings())
    assert ["/a", "/b"] == [request.path for request in site.requests]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://evil.example/x", "`vision.allowed_url_hosts`"),
        ("http://169.254.169.254/latest/meta-data", "`vision.allowed_url_hosts`"),
        ("file:///etc/passwd", "is invalid"),
        ("ftp://images.example.com/x", "is invalid"),
        ("//user@images.example.com/x", "user name"),
    ],
)
async def test_every_redirect_is_checked(site, target, reason):
    async def redirect(request):
        return web.Response(status=302, headers={"Location": target})

    site.handler = redirect

    assert reason in await rejection(local_fetcher(), site.url(), site.settings())
    assert 1 == len(site.requests)


async def test_redirect_to_an_internal_address_is_rejected(site):
    async def redirect(request):
        return web.Response(status=307, headers={"Location": f"http://internal.example.com:{site.port}/"})

    site.handler = redirect
    fetcher = local_fetcher(internal_example_com=[["10.0.0.1"]])
    settings = site.settings(allowed_url_hosts=[f"*.example.com:{site.port}"])

    assert "public internet" in await rejection(fetcher, site.url(), settings)


async def test_redirects_end(site):
    async def redirect(request):
        return web.Response(status=302, headers={"Location": "/again"})

    site.handler = redirect

    assert f"more than {MAX_REDIRECTS} redirects" in await rejection(local_fetcher(), site.url(), site.settings())
    assert MAX_REDIRECTS + 1 == len(site.requests)


@pytest.mark.parametrize("chunked", [True, False])
async def test_large_file_is_rejected_without_reading_it_all(site, chunked):
    sent = 0

    async def respond(request):
        nonlocal sent
        if not chunked:
            return web.Response(body=FILE)
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                await response.write(bytes(10_000))
                sent += 10_000
        return response

    site.handler = respond
    settings = site.settings(max_image_bytes=50_000)

    assert "more than 50000 bytes (`vision.max_image_bytes`)" in await rejection(local_fetcher(), site.url(), settings)
    assert sent < 50_000_000


async def test_slow_server_is_given_up(site):
    async def respond(request):
        await asyncio.sleep(30)

    site.handler = respond
    settings = site.settings(url_timeout_seconds=0.05)

    assert "(`vision.url_timeout_seconds`)" in await rejection(local_fetcher(), site.url(), settings)


async def test_status_other_than_success_is_an_error_without_the_path_of_the_url(site):
    async def respond(request):
        return web.Response(status=404)

    site.handler = respond
    message = await rejection(local_fetcher(), site.url("/secret?token=abc"), site.settings())

    assert ("status 404" in message, "secret" in message, "abc" in message) == (True, False, False)


async def test_compressed_response_is_not_expanded(site):
    async def respond(request):
        response = web.Response(body=b"\x1f\x8b not really gzip")
        response.headers["Content-Encoding"] = "gzip"
        return response

    site.handler = respond

    assert b"\x1f\x8b not really gzip" == await local_fetcher().fetch(site.url(), site.settings())


async def test_refused_connection_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = Vision(allowed_url_hosts=[f"{HOST}:{port}"])

    message = await rejection(local_fetcher(), f"http://{HOST}:{port}/", settings)

    assert f"the image cannot be downloaded from {HOST}:{port}: the connection failed: Connection refused" in message


async def test_unknown_name_is_an_error():
    """Names below `invalid` never exist."""
    message = await rejection(UrlFetcher(), "http://images.invalid/x.png", Vision(allowed_url_hosts=["*"]))

    assert "the image cannot be downloaded from images.invalid:80: its name cannot be resolved" in message


@pytest.mark.parametrize(
    ("pattern", "host", "port", "allowed"),
    [
        ("example.com", "example.com", 443, True),
        ("Example.com", "EXAMPLE.com", 80, True),
        ("example.com", "example.com", 8080, False),
        ("example.com:8080", "example.com", 8080, True),
        ("example.com:8080", "example.com", 443, False),
        ("example.com", "a.example.com", 443, False),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "badexample.com", 443, False),
        ("*", "anything.example", 443, True),
        ("*", "anything.example", 22, False),
    ],
)
def test_pattern_matches_hosts(pattern, host, port, allowed):
    assert allowed is is_allowed(host, port, [pattern])


@pytest.mark.parametrize(
    "pattern", ["", "https://example.com", "example.com/x", "*.", "a.*.b", "x:99999", "[::1]", "a b"]
)
def test_pattern_that_is_not_a_host_is_rejected(pattern):
    with pytest.raises(ValueError, match="is not a host"):
        parse_pattern(pattern)
