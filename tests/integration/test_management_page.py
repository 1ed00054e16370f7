"""`osaurusctl ui` with a real daemon: what its page can do, and that the daemon's own port offers none of it."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from osaurusctl.ui.daemon import FORWARDED
from osaurusctl.ui.server import ManagementServer
from osaurusd.wire import paths
from osaurusd.wire.page import Mode, Page
from tests import daemons
from tests.daemons import Daemon
from tests.fakes import hub as fake_hub
from tests.integration.pages import open_page, wait_for
from tests.models import NO_END_TOKEN, make_tiny
from tests.osaurusd.models import disk

REPO, TOKEN = "org/small", "hf_terminal"
PUBLIC = {"/", "/ui/assets/{name}", "/ui/snapshot", "/ui/stream", "/v1/models", "/v1/chat/completions"}


@dataclass
class ManagementPage:
    """A running `osaurusctl ui`, and what a browser has of it."""

    process: subprocess.Popen[str]
    link: str
    http: httpx2.Client

    def read_link(self) -> str:
        """Wait for the next link that is printed."""
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline())["url"])

    def open_session(self) -> None:
        """Exchange the link for a session."""
        reply = self.http.post("/manage/session", json={"token": self.link.partition("#token=")[2]})
        self.http.headers["Authorization"] = f"Bearer {reply.raise_for_status().json()['session']}"

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def error(self, path: str, **body: Any) -> tuple[int, str]:
        """Send a request that fails, and return the status and the code."""
        reply = self.http.post(path, json=body)
        return reply.status_code, reply.json()["error"]["code"]

    def lines(self, method: str, path: str, body: object = None) -> list[dict[str, Any]]:
        """Return the JSON lines of a response."""
        with self.http.stream(method, path, json=body) as reply:
            assert "application/jsonl" == reply.headers["Content-Type"]
            return [json.loads(line) for line in reply.iter_lines()]


@contextlib.contextmanager
def running_page(home: Path, *, browser: bool = False, **env: str) -> Iterator[ManagementPage]:
    """Run `osaurusctl ui` and open its session."""
    process = subprocess.Popen(
        [sys.executable, "-m", "osaurusctl", "ui", "--json", *([] if browser else ["--no-browser"])],
        env=daemons.environment(home, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx2.Client(timeout=60, trust_env=False) as http:
            page = ManagementPage(process, "", http)
            page.link = page.read_link()
            origin = page.link.partition("/#")[0]
            http.base_url, http.headers["Origin"] = origin, origin
            page.open_session()
            yield page
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("hub")
    fake_hub.publish(root, REPO, disk.model(), token=TOKEN)
    with fake_hub.running(root) as running:
        yield running


@pytest.fixture(scope="module")
def daemon(module_home: Path, hub: Any, tiny_tokenizer: Path) -> Iterator[Daemon]:
    options = {"max_position_embeddings": 65536, "eos_token_id": NO_END_TOKEN, "tie_word_embeddings": False}
    make_tiny(module_home / "models" / "tiny", tiny_tokenizer, **options)
    with daemons.running(module_home, HF_ENDPOINT=hub.url) as running:
        yield running


@pytest.fixture(scope="module")
def page(daemon: Daemon) -> Iterator[ManagementPage]:
    with running_page(daemon.home, HF_TOKEN=TOKEN) as running:
        yield running


def test_port_of_the_daemon_offers_no_management(daemon: Daemon, tmp_path: Path) -> None:
    server = ManagementServer(paths.resolve(), 0, print, Page.load(Mode.MANAGE, tmp_path))
    server.close()
    routes = {(route.method, route.resource.canonical) for route in server.build_app().router.routes()}
    private = [(method, path) for method, path in routes if path not in PUBLIC]

    assert len(private) > 20
    with httpx2.Client(base_url=daemon.url, timeout=60, trust_env=False) as client:
        for method, path in private:
            assert 404 == client.request(method, path, json={}).status_code, path
    assert PUBLIC >= {str(path) for _, path in FORWARDED if not path.startswith("/v0/")}


def test_used_link_is_refused_and_a_new_one_is_printed(home: Path) -> None:
    with running_page(home) as page:
        token = page.link.partition("#token=")[2]
        assert (401, "invalid_api_key") == page.error("/manage/session", token=token)
        assert 401 == page.http.get("/manage/session").status_code
        page.link = page.read_link()
        page.open_session()
        assert page.get("/manage/session")["expires_at"] > 0


def test_model_is_loaded_used_pinned_and_unloaded(page: ManagementPage) -> None:
    assert "ready" == page.post("/v0/load", model="tiny")["state"]
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 60_000, "stream": True}
    with page.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert (200, "text/event-stream") == (reply.status_code, reply.headers["Content-Type"])
        lines = reply.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        assert (409, "busy") == page.error("/v0/unload", model="tiny")
    with open_page(str(page.http.base_url).rstrip("/"), **dict(page.http.headers)) as events:
        (request,) = wait_for(events, "snapshot")["requests"]
        if request["state"] == "running":
            (request,) = wait_for(events, "requests", lambda data: data["requests"][0]["state"] != "running")[
                "requests"
            ]
        assert ("cancelled", "/chat/completions") == (request["state"], request["endpoint"])
        assert ["tiny"] == page.post("/v0/pins", model="tiny", pinned=True)["pinned"]
        wait_for(events, "workers", lambda data: data["workers"][0]["pinned"])
    assert [] == page.post("/v0/pins", model="tiny", pinned=False)["pinned"]
    assert ["tiny"] == page.post("/v0/unload", model="tiny", force=True)["unloaded"]
    assert {"pinned", "unpinned"} <= {event["kind"] for event in page.lines("GET", "/v0/events")}


def test_model_is_found_downloaded_with_progress_and_removed(page: ManagementPage) -> None:
    (found,) = page.post("/v0/search", words="small", author=None)
    assert (REPO, "not downloaded") == (found["repo"], found["state"])
    # The model is gated. The token of the terminal is used, whatever the page sends.
    pull = page.post("/v0/pulls", model=REPO, token="hf_page")
    events = page.lines("POST", "/v0/pulls/watch", {"pulls": [pull["id"]]})
    assert "done" == events[-1]["event"]

    (preview,) = page.post("/manage/remove/preview", model="small")["removed"]
    assert (400, "invalid_request") == page.error("/manage/remove", model="small", confirm="tiny")
    (removed,) = page.post("/manage/remove", model="small", confirm="small")["removed"]
    assert preview == removed
    assert "small" not in [model["name"] for model in page.get("/v0/models")]


def test_configuration_is_applied_and_logs_and_diagnosis_are_shown(page: ManagementPage, daemon: Daemon) -> None:
    changed = page.post("/manage/config", key="residency.keep_alive_seconds", value="7m")
    assert ["residency.keep_alive_seconds"] == changed["applied"]
    page.post("/manage/config", key="residency.keep_alive_seconds", value=None)

    records = page.lines("GET", "/manage/logs?lines=1000&level=info")
    assert "serving" in [record["event"] for record in records]
    assert "configuration" in [check["name"] for check in page.get("/manage/doctor")["checks"]]


def test_daemon_may_restart(home: Path) -> None:
    with running_page(home) as page:
        assert (503, "daemon_not_running") == page.error("/v0/reload")
        with daemons.running(home):
            assert page.get("/v0/status")["serving"]
        assert (503, "daemon_not_running") == page.error("/v0/reload")


def test_link_is_opened_in_the_browser_of_the_user(home: Path, tmp_path: Path) -> None:
    script, opened = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    script.chmod(0o700)
    with running_page(home, browser=True, BROWSER=f"{script} %s", DISPLAY=":0") as page:
        daemons.wait_until(opened.exists)
        assert page.link == opened.read_text().strip()


def test_ctrl_c_ends_it(home: Path) -> None:
    with running_page(home) as page:
        page.process.send_signal(signal.SIGINT)
        assert 130 == page.process.wait(60)
