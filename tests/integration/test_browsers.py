"""What a page gets from the real daemon, route by route; and that what a refusal advises is so."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import daemons
from tests.daemons import Daemon
from tests.integration.test_pulls import ctl

ROUTES = [
    *(f"{prefix}{path}" for prefix in ("", "/v1") for path in ("/health", "/models", "/models/a", "/completions")),
    *("/v1/chat/completions", "/metrics", "/openapi.json", "/", "/nowhere", "/v0/status", "/v0/shutdown"),
]
STRANGERS = {
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


@pytest.fixture
def client(daemon: Daemon) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=daemon.url, trust_env=False, timeout=60) as client:
        yield client


def ask(client: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    url = client.base_url.copy_with(raw_path=path.encode())
    return client.request(method, url, headers=headers, content=b"{}" if method == "POST" else None)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_strangers_are_refused_at_every_route(client: httpx2.Client, stranger: str, method: str) -> None:
    for path in ROUTES:
        answer = ask(client, method, path, STRANGERS[stranger])

        assert 403 == answer.status_code, (path, answer.text)
        assert [] == [name for name in answer.headers if name.startswith("access-control")]
        assert "nosniff" == answer.headers["x-content-type-options"]
        assert "forbidden" in answer.text or method == "HEAD"


def test_what_a_refusal_advises_lets_the_app_in(daemon: Daemon, client: httpx2.Client) -> None:
    app = {"Origin": "vscode-webview://1a2b3c", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    refused = ask(client, "OPTIONS", CHAT, app | asked)
    line, *_, command = re.findall(r"`([^`]+)`", refused.json()["error"]["message"])

    assert 'allowed_origins = ["vscode-webview://1a2b3c"]' == line
    config: Path = daemon.home / "config.toml"
    config.write_text(f"[server]\n{line}\n")
    assert 0 == ctl(daemon.home, *command.split()[1:]).returncode

    allowed = ask(client, "OPTIONS", CHAT, app | asked)
    assert (204, "POST") == (allowed.status_code, allowed.headers["access-control-allow-methods"])
    answer = ask(client, "POST", CHAT, app | {"Content-Type": "application/json"})
    assert 400 == answer.status_code
    assert app["Origin"] == answer.headers["access-control-allow-origin"]
    config.unlink()
    assert 0 == ctl(daemon.home, "reload").returncode
    assert 403 == ask(client, "OPTIONS", CHAT, app | asked).status_code


def test_the_log_warns_when_every_page_is_let_in(daemon: Daemon, client: httpx2.Client) -> None:
    (daemon.home / "config.toml").write_text('[server]\nallowed_origins = ["null"]\n')
    assert 0 == ctl(daemon.home, "reload").returncode

    warning = "`server.allowed_origins` has `null`, which any web page can make its origin"
    assert "warning" == daemon.wait_for(warning)["level"]
    assert 200 == ask(client, "GET", "/health", STRANGERS["sandbox"]).status_code
    (daemon.home / "config.toml").unlink()
    assert 0 == ctl(daemon.home, "reload").returncode


def test_a_pattern_that_is_none_keeps_the_old_configuration(daemon: Daemon, client: httpx2.Client) -> None:
    (daemon.home / "config.toml").write_text('[server]\nallowed_origins = ["*"]\n')
    told = ctl(daemon.home, "reload")
    (daemon.home / "config.toml").unlink()

    assert 0 != told.returncode
    assert "server.allowed_origins[0]" in told.stderr
    assert 403 == ask(client, "GET", "/models", {"Origin": "https://evil.example"}).status_code
