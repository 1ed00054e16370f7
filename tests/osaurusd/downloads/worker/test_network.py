"""Proxies and certificates of downloads and searches."""

import socket
import socketserver

import httpx2
import pytest
import trustme

from osaurusd.downloads import messages
from osaurusd.downloads.worker import hub as hub_client
from osaurusd.downloads.worker.errors import PullError
from osaurusd.downloads.worker.proxies import find_proxy
from tests.fakes import hub as fake_hub
from tests.fakes import proxies

from .conftest import FILES, REPO


@pytest.fixture(params=["socks", "http"])
def proxy(request):
    with proxies.running(request.param) as proxy:
        proxy.url = f"{'socks5' if request.param == 'socks' else 'http'}://127.0.0.1:{proxy.port}"
        yield proxy


@pytest.fixture
def socks():
    with proxies.running("socks") as proxy:
        yield proxy


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "variable",
    ["HTTP_PROXY", *(pytest.param(name, marks=pytest.mark.long) for name in ("http_proxy", "ALL_PROXY", "all_proxy"))],
)
async def test_metadata_and_files_use_the_same_proxy(hub, pull, cache, monkeypatch, proxy, variable):
    monkeypatch.setenv(variable, proxy.url)

    assert isinstance(await pull(), messages.Pulled)
    assert FILES == cache.snapshot()
    assert {"127.0.0.1", "localhost"} == set(proxy.targets)
    proxy.targets.clear()
    assert any(model.repo == REPO for model in hub_client.search("", "generate", None, 20))
    assert proxy.targets


async def test_process_uses_a_socks_proxy_that_resolves_names(hub, start_pull, env, socks):
    socks.user = "me"
    env["HF_ENDPOINT"] = hub.url.replace("127.0.0.1", "hub.invalid")
    env["ALL_PROXY"] = f"socks5h://me:word@127.0.0.1:{socks.port}"
    async with start_pull() as (_, reader, _):
        while not isinstance(frame := await reader.read(), messages.Pulled | messages.Failure):
            pass
    assert isinstance(frame, messages.Pulled), frame
    assert {"hub.invalid", "localhost"} == set(socks.targets)
    assert {("me", "word")} == set(socks.credentials)


async def test_unusable_proxy_of_another_scheme_does_no_harm(hub, pull, monkeypatch, socks):
    monkeypatch.setenv("HTTP_PROXY", f"socks5://127.0.0.1:{socks.port}")
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")

    assert isinstance(await pull(), messages.Pulled)
    assert socks.targets


@pytest.mark.parametrize(
    "value", ["127.0.0.1,localhost", "*", "127.0.0.0/8, localhost", "fe80::/10,127.0.0.1,localhost"]
)
async def test_hosts_in_no_proxy_are_reached_directly(hub, pull, monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", value)

    assert isinstance(await pull(), messages.Pulled)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "socks4://me:word@127.0.0.1:1",
            "ALL_PROXY: socks4:// proxies are not supported; use http, https, socks5",
        ),
        ("http://", "ALL_PROXY is not the URL of a proxy"),
        ("http://proxy:port", "ALL_PROXY is not the URL of a proxy"),
    ],
)
async def test_unusable_proxy_is_refused_in_one_line(hub, pull, monkeypatch, value, message):
    monkeypatch.setenv("ALL_PROXY", value)

    result = await pull()

    assert isinstance(result, messages.Failure)
    assert result.message.startswith(message)
    assert "\n" not in result.message
    assert "word" not in result.message
    with pytest.raises(PullError) as error:
        hub_client.search("", "generate", None, 20)
    assert result.message == error.value.message


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_errors_name_a_proxy_that_is_unreachable(hub, pull, monkeypatch, scheme):
    port = closed_port()
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:word@127.0.0.1:{port}")

    result = await pull(retry=0.1)

    assert f"the proxy {scheme}://127.0.0.1:{port} (ALL_PROXY) failed: " in result.message
    assert "word" not in result.message


class _NotSocks(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def not_socks():
    with proxies.serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _NotSocks)) as server:
        yield server.server_address[1]


async def note_of(start_pull):
    """Return the first note of a pull that waits, from a process that may leave sockets open."""
    async with start_pull() as (_, reader, _):
        while not (frame := await reader.read()).note:
            pass
    return frame.note


async def test_errors_name_a_proxy_that_refuses_the_credentials(start_pull, env, socks):
    socks.user = "another"
    env["ALL_PROXY"] = f"socks5://me:word@127.0.0.1:{socks.port}"
    note = await note_of(start_pull)
    assert f"the proxy socks5://127.0.0.1:{socks.port} (ALL_PROXY) failed: Invalid username/password" in note


async def test_errors_name_a_proxy_that_is_no_socks_proxy(start_pull, env, not_socks):
    env["ALL_PROXY"] = f"socks5://127.0.0.1:{not_socks}"
    assert f"the proxy socks5://127.0.0.1:{not_socks} (ALL_PROXY) failed: " in await note_of(start_pull)


@pytest.mark.parametrize(
    ("env", "url", "expected"),
    [
        ({}, "https://hub.example", None),
        ({"HTTPS_PROXY": "proxy:3128"}, "https://hub.example", "http://proxy:3128 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://me:word@proxy:3128"}, "https://hub.example", "http://proxy:3128 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://hub.example", None),
        ({"HTTPS_PROXY": "", "ALL_PROXY": "socks://proxy:1"}, "https://hub.example", "socks5://proxy:1 (ALL_PROXY)"),
        ({"ALL_PROXY": "SOCKS5H://proxy:1", "NO_PROXY": ".example"}, "https://hub.example", None),
        ({"ALL_PROXY": "socks5h://proxy:1", "NO_PROXY": "hub.example:8443"}, "https://hub.example:8443", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3", "http://p:1 (ALL_PROXY)"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "fd00::/8"}, "https://[fd00::1]", None),
    ],
)
def test_proxy_follows_from_the_environment(pull, monkeypatch, env, url, expected):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = find_proxy(httpx2.URL(url))
    assert expected == (str(found) if found else None)


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_hub(tmp_path_factory, ca):
    root = tmp_path_factory.mktemp("tls hub")
    certificate = root / "server.pem"
    ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    fake_hub.publish(root / "repos", REPO, FILES)
    with fake_hub.running(root / "repos", certificate) as hub:
        yield hub


@pytest.mark.parametrize("kind", ["direct", "socks", "http"])
async def test_certificate_authority_of_the_environment_is_trusted(tls_hub, start_pull, env, tmp_path, ca, kind):
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    env |= {"HF_ENDPOINT": tls_hub.url, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    with proxies.running("socks" if kind == "socks" else "http") as proxy:
        if kind != "direct":
            env["HTTPS_PROXY"] = f"{'socks5' if kind == 'socks' else 'http'}://127.0.0.1:{proxy.port}"
        async with start_pull() as (_, reader, _):
            while not isinstance(frame := await reader.read(), messages.Pulled | messages.Failure):
                pass
        assert isinstance(frame, messages.Pulled), frame
        assert (kind != "direct") == bool(proxy.targets)


async def test_untrusted_certificate_is_an_error_that_names_the_setting(tls_hub, start_pull, env):
    env["HF_ENDPOINT"] = tls_hub.url
    async with start_pull() as (_, reader, _):
        while not isinstance(frame := await reader.read(), messages.Failure):
            assert isinstance(frame, messages.Progress)
    assert "is not trusted" in frame.message
    assert "SSL_CERT_FILE" in frame.message


async def test_missing_certificate_file_is_an_error_that_names_the_setting(hub, pull, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    result = await pull()
    assert result.message.startswith(f"SSL_CERT_FILE: {tmp_path}/none.pem cannot be read: ")
