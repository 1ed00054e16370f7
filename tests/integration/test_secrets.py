"""Files, logs and outputs contain no secret, no prompt and no completion, and files are private.

One daemon with debug logging is used in every way that might leak something. Then everything is searched.
"""

import contextlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests import daemons
from tests.daemons import Daemon, ctl
from tests.fakes import hub as stand_in
from tests.models import NO_END_TOKEN, make_tiny
from tests.osaurusd.models import disk

HF_TOKEN = "hf_PLANTEDenvironmentTOKEN0123456789"
PULL_TOKEN = "hf_PLANTEDpullTOKEN0123456789"
API_KEY = "sk-osaurus-PLANTEDkey0123456789"
OTHER_KEY = "PLANTEDotherKEY0123456789"
PASSWORD = "PLANTEDproxyPASSWORD"
SIGNATURE = "Signature=a%2Bb"
SECRETS = (HF_TOKEN, PULL_TOKEN, API_KEY, OTHER_KEY, PASSWORD, SIGNATURE)

PROMPT = "the-planted-zebra-sleeps-at-noon"
"""Part of every prompt, and of names, schemas and bodies that are rejected."""

TEMPLATE = """
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% if 'rejected' in message.content %}{{ raise_exception('unlike ' ~ message.content) }}{% endif %}{% endfor %}
assistant:"""
PRIVATE_MODES = {stat.S_IFREG: 0o600, stat.S_IFDIR: 0o700, stat.S_IFSOCK: 0o600}


@dataclass
class Traces:
    """The traces of a run: its home, outputs by source, completions, and environments of processes."""

    home: Path
    outputs: dict[str, str] = field(default_factory=dict)
    completions: list[str] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    sent: list[str | None] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    def record_processes(self, daemon: Daemon) -> None:
        """Record what every user sees of the processes, and what only their own user sees."""
        process = psutil.Process(daemon.process.pid)
        for child in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                words = child.cmdline()
                self.outputs[f"arguments of {' '.join(words[:5])} ({child.pid})"] = "\n".join(words)
                kind = next((word for word in words if word.startswith("osaurusd.")), "daemon")
                self.environments[kind] = child.environ()


@pytest.fixture(scope="module")
def traces(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    traces = Traces(home)
    repos = tmp_path_factory.mktemp("hub")
    stand_in.publish(repos, "org/gated", disk.model(), token=PULL_TOKEN)
    stand_in.publish(repos, "org/broken", disk.model())
    stand_in.publish(repos, "org/slow", disk.model())
    endless = {"eos_token_id": NO_END_TOKEN, "max_position_embeddings": 65536}
    tiny = make_tiny(home / "models" / "tiny", tiny_tokenizer, template=TEMPLATE, **endless)
    before = os.umask(0o022)
    try:
        with stand_in.running(repos) as hub:
            environment = {
                **{"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": HF_TOKEN},
                **{"OPENAI_API_KEY": OTHER_KEY, "OSAURUS_LOG_LEVEL": "debug", "NO_PROXY": "*", "no_proxy": "*"},
                "HTTPS_PROXY": f"http://user:{PASSWORD}@127.0.0.1:9",
            }
            with daemons.running(home, **environment) as daemon:
                chat(traces, daemon)
                manage(traces, daemon, tiny)
                pull(traces, daemon, hub)
                collect_outputs(traces, daemon)
            traces.outputs["standard error"] = "\n".join(map(repr, daemon.log))
        yield traces
    finally:
        os.umask(before)
        shutil.rmtree(home, ignore_errors=True)


def chat(traces: Traces, daemon: Daemon) -> None:
    """Send valid and invalid requests."""
    schema = {"name": "x", "schema": {"type": "object", "properties": {PROMPT: {"type": PROMPT}}, PROMPT: 1}}
    tools = [{"type": "function", "function": {"name": PROMPT, "parameters": {"type": "object"}}}]
    bodies: dict[str, Any] = {
        "chat": {},
        "completion": {"prompt": f"{PROMPT} and", "echo": True, "max_tokens": 8},
        "schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
        "tools": {"tools": tools, "tool_choice": "required", "max_tokens": 60},
        "template": {"messages": [{"role": "user", "content": f"{PROMPT} rejected"}]},
        "role": {"messages": [{"role": PROMPT, "content": PROMPT}]},
        "field": {PROMPT: PROMPT},
        "model": {"model": PROMPT},
    }
    headers = {"Authorization": f"Bearer {API_KEY}", "x-api-key": OTHER_KEY, "Cookie": f"session={OTHER_KEY}"}
    with httpx2.Client(base_url=daemon.url, headers=headers, timeout=120, trust_env=False) as client:
        for name, body in bodies.items():
            base = {"model": "tiny", "max_tokens": 12, "seed": 1}
            if name != "completion":
                base["messages"] = [{"role": "user", "content": PROMPT}]
            path = "/v1/completions" if name == "completion" else "/v1/chat/completions"
            response = client.post(path, json={**base, **body})
            traces.statuses[name] = response.status_code
            traces.completions += texts(response.json())
        garbage = client.post("/v1/chat/completions", content=f'{{"model": "{PROMPT}', headers=JSON)
        traces.statuses["garbage"] = garbage.status_code
        traces.statuses["chunks"] = send_bad_chunks(daemon)
        lost = client.get(f"/v1/{API_KEY}/nowhere?api_key={API_KEY}&token={OTHER_KEY}")
        traces.statuses["nowhere"] = lost.status_code
        traces.record_processes(daemon)
        kill_midway(traces, daemon, client)


JSON = {"Content-Type": "application/json"}


def send_bad_chunks(daemon: Daemon) -> int:
    """Send a body with invalid chunks, and return the status."""
    url = urlsplit(daemon.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n{PROMPT}".encode())
        return int(connection.makefile("rb").readline().split()[1])


def texts(response: dict[str, Any]) -> list[str]:
    """Return the texts that the model generated."""
    generated = []
    for choice in response.get("choices", []):
        message = choice.get("message", {})
        generated += [choice.get("text"), message.get("content")]
        generated += [call["function"]["arguments"] for call in message.get("tool_calls") or []]
    return [text for text in generated if text and len(text) > 8]


def kill_midway(traces: Traces, daemon: Daemon, client: httpx2.Client) -> None:
    """Kill the worker while it streams."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60_000, "stream": True}
    (pid,) = [worker["pid"] for worker in daemon.admin("GET", "/v0/workers")[1] if worker["model"] == "tiny"]
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if '"content":"' in line)
        psutil.Process(pid).kill()
        traces.outputs["interrupted stream"] = [line for line in lines if line][-1]


def manage(traces: Traces, daemon: Daemon, folder: Path) -> None:
    """Change everything that is saved to state files."""
    for name, (path, body) in {
        "import": ("/v0/imports", {"path": str(folder), "name": "brought"}),
        "alias": ("/v0/aliases", {"alias": "mine", "target": "tiny"}),
        "pin": ("/v0/pins", {"model": "tiny"}),
    }.items():
        traces.statuses[name], result = daemon.admin("POST", path, body)
        traces.outputs[name] = json.dumps(result)


def pull(traces: Traces, daemon: Daemon, hub: stand_in.Hub) -> None:
    """Download with a token, and cause failures that involve secrets."""
    hub.fault("status", "model.safetensors", status=404, times=-1, where="bytes")
    pulls = [("org/broken", {}), ("org/gated", {"token": PULL_TOKEN})]
    for model, more in pulls:
        status, result = daemon.admin("POST", "/v0/pulls", {"model": model, **more})
        assert 202 == status, result
        traces.outputs[f"pull of {model}"] = json.dumps(result)
        traces.record_processes(daemon)
        if model == "org/broken":
            # The pull retries; meanwhile its note shows the reason.
            with daemon.following("POST", "/v0/pulls/watch", {"pulls": [result["id"]]}) as events:
                noted = next(event for event in events if event["pull"]["note"])
            traces.outputs["stalled pull"] = json.dumps(noted)
            traces.outputs["cancelled pull"] = json.dumps(
                daemon.admin("POST", "/v0/pulls/cancel", {"pull": result["id"]})
            )
            traces.sent += [request["authorization"] for request in hub.requests()]
            hub.reset()
        else:
            traces.outputs["completed pull"] = json.dumps(
                daemon.admin("POST", "/v0/pulls/watch", {"pulls": [result["id"]]})
            )
    traces.sent += [request["authorization"] for request in hub.requests()]
    traces.outputs["search"] = json.dumps(daemon.admin("POST", "/v0/search", {"words": "x", "token": PULL_TOKEN}))


def collect_outputs(traces: Traces, daemon: Daemon) -> None:
    """Collect everything that the daemon and the CLI display."""
    for path in ("status", "diagnosis", "models", "workers", "pins", "events", "aliases", "pulls"):
        traces.outputs[path] = json.dumps(daemon.admin("GET", f"/v0/{path}"), ensure_ascii=False)
    with httpx2.Client(base_url=daemon.url, timeout=120, trust_env=False) as client:
        traces.outputs["metrics"] = client.get("/metrics").text
    for command in (["ps"], ["status"], ["doctor"], ["pulls", "--json"]):
        result = ctl(daemon.home, *command, HF_TOKEN=HF_TOKEN)
        traces.outputs[f"osaurusctl {' '.join(command)}"] = result.stdout + result.stderr


def files_of(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield all files of a home except weights."""
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix != ".safetensors":
            yield path, path.read_bytes()


def leaks(traces: Traces, words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the words that occur in the traces, with their places."""
    hits = [(word, where) for where, text in traces.outputs.items() for word in words if word in text]
    for path, content in files_of(traces.home):
        hits += [(word, str(path)) for word in words if word.encode() in content]
    return hits


def test_every_step_of_the_run_had_the_expected_result(traces: Traces) -> None:
    """Otherwise the run could not have leaked anything."""
    assert {
        **{"chat": 200, "completion": 200, "schema": 400, "tools": 200, "template": 400, "role": 400},
        **{"model": 404, "garbage": 400, "chunks": 400, "nowhere": 404, "import": 200, "alias": 200, "pin": 200},
    } == {name: status for name, status in traces.statuses.items() if name != "field"}
    assert len(traces.completions) >= 2
    assert any(PROMPT in completion for completion in traces.completions)
    assert '"worker_crashed"' in traces.outputs["interrupted stream"]
    assert {f"Bearer {PULL_TOKEN}", f"Bearer {HF_TOKEN}", None} <= set(traces.sent)
    assert '"state": "done"' in traces.outputs["completed pull"]
    assert "pulls.json" in {path.name for path, _ in files_of(traces.home)}
    log = (traces.home / "logs" / "osaurusd.log").read_text()
    assert "SIGKILL" in log
    assert '"level": "debug"' in log


def test_secrets_are_not_saved_or_displayed(traces: Traces) -> None:
    assert [] == leaks(traces, SECRETS)


def test_prompts_and_completions_are_not_saved_or_displayed(traces: Traces) -> None:
    assert [] == leaks(traces, (PROMPT, *traces.completions))


def test_workers_have_no_secret_in_their_environment(traces: Traces) -> None:
    assert {"daemon", "osaurusd.worker"} <= traces.environments.keys()
    assert HF_TOKEN == traces.environments["daemon"]["HF_TOKEN"]
    for kind, environment in traces.environments.items():
        if kind not in ("daemon", "osaurusd.downloads.worker"):
            given = "\n".join(f"{name}={value}" for name, value in environment.items())
            assert [] == [word for word in SECRETS if word in given], kind


def test_files_of_the_daemon_are_private(traces: Traces) -> None:
    modes = {
        str(path.relative_to(traces.home)): (stat.S_IFMT(path.lstat().st_mode), stat.S_IMODE(path.lstat().st_mode))
        for part in ("state", "run", "logs", "models/brought")
        for path in (traces.home / part, *(traces.home / part).rglob("*"))
    }

    assert {"state/names.json", "state/pulls.json", "state/residency.json", "logs/osaurusd.log"} <= modes.keys()
    assert {"run/admin.sock.lock", "models/brought/config.json"} <= modes.keys()
    assert {} == {name: oct(mode) for name, (kind, mode) in modes.items() if mode != PRIVATE_MODES[kind]}


def test_proxy_password_is_not_in_error_messages(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    (home / "config.toml").write_text("[pulls]\nretry_seconds = 0\n")
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy"), f"http://user:{PASSWORD}@127.0.0.1:{port}")
    environment = {"HF_ENDPOINT": "http://hub.invalid", "HF_TOKEN": HF_TOKEN, "OSAURUS_LOG_LEVEL": "debug"}
    traces = Traces(home)
    with daemons.running(home, **environment, **proxies, NO_PROXY="", no_proxy="") as daemon:
        pull = daemon.admin("POST", "/v0/pulls", {"model": "org/m"})[1]
        *_, last = daemon.admin("POST", "/v0/pulls/watch", {"pulls": [pull["id"]]})[1]
        traces.outputs["events"] = json.dumps(daemon.admin("GET", "/v0/events"))
        traces.outputs["pulls"] = json.dumps(last)

    assert "failed" == last["pull"]["state"]
    traces.outputs["standard error"] = "\n".join(map(repr, daemon.log))
    assert [] == leaks(traces, (PASSWORD, HF_TOKEN))
