"""The data of the page, with a real daemon: complete, live, without contents, and cheap."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests import daemons
from tests.conftest import TINY
from tests.daemons import Daemon
from tests.integration.access import create
from tests.integration.pages import open_page, wait_for

MARKER = "the-planted-walrus-hums-at-dusk"
BROWSER = {"Accept": "text/html"}

IDLE_PAGES = 20
MEASURED_SECONDS = 3.0
MAX_CORE_SHARE = 0.1
"""Measured: 0.002 of a core. Tests share a loaded machine."""


def fetch(url: str, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{url}{path}", headers=headers, timeout=60, trust_env=False)


def requests(url: str) -> list[dict[str, Any]]:
    return list(fetch(url, "/ui/snapshot").json()["requests"])


def test_requests_of_every_protocol_are_listed_with_their_figures(tiny_daemon: Daemon, client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    client.chat.completions.create(model=TINY, messages=messages, max_tokens=5)
    client.responses.create(model=TINY, input="hello", max_output_tokens=5)
    for path, options in (("/messages", {"max_tokens": 5}), ("/api/chat", {"options": {"num_predict": 5}})):
        body = {"model": TINY, "messages": messages, **options}
        httpx2.post(f"{tiny_daemon.url}{path}", json=body, timeout=60, trust_env=False)
    listed = requests(tiny_daemon.url)[:4]

    assert ["ollama", "anthropic", "responses", "openai"] == [request["protocol"] for request in listed]
    assert ["/api/chat", "/messages", "/responses", "/chat/completions"] == [each["endpoint"] for each in listed]
    for request in listed:
        assert (TINY, "completed", 200, 5) == tuple(
            request[key] for key in ("model", "state", "status", "output_tokens")
        )
        assert request["prompt_tokens"] > 5
        assert 0 < request["first_token_seconds"] <= request["seconds"]
        assert request["tokens_per_second"] > 0


def test_failed_and_cancelled_requests_are_listed(tiny_daemon: Daemon, client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
    failed = requests(tiny_daemon.url)[0]
    assert ("failed", 404, "model_not_found", None) == tuple(
        failed[key] for key in ("state", "status", "code", "model")
    )

    with open_page(tiny_daemon.url) as events:
        stream = client.completions.create(model=TINY, prompt="hello", max_tokens=8000, stream=True)
        next(iter(stream))
        running = wait_for(events, "requests")["requests"][0]
        assert ("running", None, TINY) == tuple(running[key] for key in ("state", "status", "model"))
        stream.close()
        ended = wait_for(events, "requests", lambda data: data["requests"][0]["state"] != "running")["requests"][0]
    assert (running["id"], "cancelled") == (ended["id"], ended["state"])


def test_nothing_of_prompts_and_outputs_is_in_the_data(tiny_daemon: Daemon, client: OpenAI) -> None:
    with open_page(tiny_daemon.url) as events:
        messages: Any = [{"role": "system", "content": MARKER}, {"role": "user", "content": f"say {MARKER}"}]
        tools: Any = [{"type": "function", "function": {"name": MARKER, "parameters": {"type": "object"}}}]
        reply = client.chat.completions.create(
            model=TINY,
            messages=messages,
            tools=tools,
            max_tokens=40,
            user=MARKER,
            stop=[MARKER],
            extra_headers={"x-request-id": MARKER},
        )
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model=MARKER, messages=messages)
        with pytest.raises(BadRequestError):
            client.chat.completions.create(model=TINY, messages=messages, extra_body={"logit_bias": {MARKER: 1}})
        fetch(tiny_daemon.url, f"/{MARKER}?{MARKER}", **{"X-Title": MARKER})
        seen = [wait_for(events, "requests", lambda data: any(each["code"] for each in data["requests"]))]
    seen += [fetch(tiny_daemon.url, "/ui/snapshot").json()]
    text = json.dumps(seen, ensure_ascii=False)

    output = reply.choices[0].message.content
    assert output
    assert MARKER not in text
    assert output not in text


def test_memory_of_the_models_adds_up(tiny_daemon: Daemon) -> None:
    tiny_daemon.admin("POST", "/v0/load", {"model": TINY})
    snapshot = fetch(tiny_daemon.url, "/ui/snapshot").json()

    held = [worker["memory_bytes"] for worker in snapshot["workers"]]
    assert 0 < sum(held) == snapshot["memory"]["used_bytes"] <= snapshot["memory"]["budget_bytes"]


def test_snapshot_contains_no_paths_and_no_process_ids(tiny_daemon: Daemon) -> None:
    text = fetch(tiny_daemon.url, "/ui/snapshot").text

    assert str(tiny_daemon.home) not in text
    assert '"pid"' not in text


@pytest.mark.parametrize("path", ["/", "/ui/snapshot", "/ui/stream", "/ui/assets/none.js"])
@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_pages_of_other_sites_get_nothing(tiny_daemon: Daemon, path: str, headers: dict[str, str]) -> None:
    assert 403 == fetch(tiny_daemon.url, path, **BROWSER, **headers).status_code


def test_data_needs_a_key_but_the_page_does_not(home: Path) -> None:
    with daemons.running(home) as daemon:
        key = create(daemon)["key"]
        (home / "config.toml").write_text("[server]\nrequire_key = true\n")
        daemon.admin("POST", "/v0/reload", {})

        assert 401 != fetch(daemon.url, "/", **BROWSER).status_code
        assert 404 == fetch(daemon.url, "/ui/assets/none.js").status_code
        for path in ("/ui/snapshot", "/ui/stream", "/"):
            response = fetch(daemon.url, path, Accept="application/json")
            assert (401, "invalid_api_key") == (response.status_code, response.json()["error"]["code"])
        authorized = {"Authorization": f"Bearer {key}"}
        assert 200 == fetch(daemon.url, "/ui/snapshot", **authorized).status_code
        with open_page(daemon.url, **authorized) as events:
            assert "snapshot" == next(events)[0]


def test_stream_ends_when_the_daemon_stops_and_starts_anew_with_the_next_one(home: Path) -> None:
    with daemons.running(home) as daemon, open_page(daemon.url) as events:
        first = next(events)[1]
        assert 0 == daemon.stop()
        assert set() == {name for name, _ in events} - {"sample", "workers", "models"}
    with daemons.running(home) as daemon, open_page(daemon.url) as events:
        name, second = next(events)
    assert ("snapshot", True) == (name, first["instance"] != second["instance"])


def test_idle_pages_cost_next_to_nothing(tiny_daemon: Daemon) -> None:
    tiny_daemon.admin("POST", "/v0/load", {"model": TINY})
    process = psutil.Process(tiny_daemon.process.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE_PAGES):
            events = stack.enter_context(open_page(tiny_daemon.url))
            assert "snapshot" == next(events)[0]
        started = sum(process.cpu_times()[:2])
        time.sleep(MEASURED_SECONDS)
        share = (sum(process.cpu_times()[:2]) - started) / MEASURED_SECONDS

    assert share < MAX_CORE_SHARE
