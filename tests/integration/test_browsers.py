"""Web pages and the real daemon: which are rejected at every route, and how to allow one."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import daemons
from tests.daemons import Daemon, ctl

ROUTES = [
    *(f"{prefix}{path}" for prefix in ("", "/v1") for path in ("/health", "/models", "/models/a", "/completions")),
    *("/v1/chat/completions", "/metrics", "/openapi.json", "/", "/nowhere", "/v0/status", "/v0/shutdown"),
]
REJECTED = {
    "rebound": {"Host": "evil.example", "Origin": "http://evil.example"},
    "page": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    "simple": {"Origin": "https://evil.example", "Content-Type": "text/plain"},
    "sandbox": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "image": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "preflight": {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    "zeros": {"Host": "0.0.0.0:8080"},
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemons.running(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=daemon.url, trust_env=False, timeout=60) as client:
        yield client


def send(client: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    url = client.base_url.copy_with(raw_path=path.encode())
    return client.request(method, url, headers=headers, content=b"{}" if method == "POST" else None)


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_other_origins_are_rejected_at_every_route(client: httpx2.Client, name: str, method: str) -> None:
    for path in ROUTES:
        response = send(client, method, path, REJECTED[name])

        assert 403 == response.status_code, (path, response.text)
        assert [] == [name for name in response.headers if name.startswith("access-control")]
        assert "nosniff" == response.headers["x-content-type-options"]
        assert "forbidden" in response.text or method == "HEAD"


def test_setting_in_the_error_message_allows_the_app(daemon: Daemon, client: httpx2.Client) -> None:
    app = {"Origin": "vscode-webview://1a2b3c", "Sec-Fetch-Site": "cross-site"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    rejected = send(client, "OPTIONS", CHAT, app | preflight)
    message = rejected.json()["error"]["message"]
    (line,) = re.findall(r"`(allowed_origins [^`]+)`", message)
    (command,) = re.findall(r'"(osaurusctl [^"]+)"', message)

    assert 'allowed_origins = ["vscode-webview://1a2b3c"]' == line
    config: Path = daemon.home / "config.toml"
    config.write_text(f"[server]\n{line}\n")
    assert 0 == ctl(daemon.home, *command.split()[1:]).returncode

    allowed = send(client, "OPTIONS", CHAT, app | preflight)
    assert (204, "POST") == (allowed.status_code, allowed.headers["access-control-allow-methods"])
    response = send(client, "POST", CHAT, app | {"Content-Type": "application/json"})
    assert 400 == response.status_code
    assert app["Origin"] == response.headers["access-control-allow-origin"]
    config.unlink()
    assert 0 == ctl(daemon.home, "reload").returncode
    assert 403 == send(client, "OPTIONS", CHAT, app | preflight).status_code


def test_log_warns_if_every_page_is_allowed(daemon: Daemon, client: httpx2.Client) -> None:
    (daemon.home / "config.toml").write_text('[server]\nallowed_origins = ["null"]\n')
    assert 0 == ctl(daemon.home, "reload").returncode

    warning = "`server.allowed_origins` contains `null`, an origin that any web page can assume"
    assert "warning" == daemon.wait_for(warning)["level"]
    assert 200 == send(client, "GET", "/health", REJECTED["sandbox"]).status_code
    (daemon.home / "config.toml").unlink()
    assert 0 == ctl(daemon.home, "reload").returncode


def test_invalid_pattern_keeps_the_previous_configuration(daemon: Daemon, client: httpx2.Client) -> None:
    (daemon.home / "config.toml").write_text('[server]\nallowed_origins = ["*"]\n')
    result = ctl(daemon.home, "reload")
    (daemon.home / "config.toml").unlink()

    assert 0 != result.returncode
    assert "server.allowed_origins[0]" in result.stderr
    assert 403 == send(client, "GET", "/models", {"Origin": "https://evil.example"}).status_code
