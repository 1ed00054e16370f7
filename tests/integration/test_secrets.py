"""What a run leaves behind and shows: no secret, no prompt and no answer in it, and nothing that others may read.

One daemon is used in every way that might spill something, while it logs all it can. Then everything is searched.
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
from tests.daemons import Daemon
from tests.fakes import hub as stand_in
from tests.integration.test_pulls import ctl
from tests.models import make_tiny
from tests.osaurusd.models import disk

HF_TOKEN = "hf_PLANTEDenvironmentTOKEN0123456789"
PULL_TOKEN = "hf_PLANTEDpullTOKEN0123456789"
API_KEY = "sk-osaurus-PLANTEDkey0123456789"
OTHER_KEY = "PLANTEDotherKEY0123456789"
PASSWORD = "PLANTEDproxyPASSWORD"
SIGNATURE = "Signature=a%2Bb"
SECRETS = (HF_TOKEN, PULL_TOKEN, API_KEY, OTHER_KEY, PASSWORD, SIGNATURE)

SAID = "the-planted-zebra-sleeps-at-noon"
"""In every prompt, in names, schemas and bodies that are refused."""

TEMPLATE = """
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% if loop.index > 1 %}{{ raise_exception('unlike ' ~ message.content) }}{% endif %}{% endfor %}assistant:"""
USUAL_MODES = {stat.S_IFREG: 0o600, stat.S_IFDIR: 0o700, stat.S_IFSOCK: 0o600}


@dataclass
class Used:
    """What is left of a run: its home, texts by where they were shown, answers, and what processes were given."""

    home: Path
    shown: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    sent: list[str | None] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    def note_processes(self, daemon: Daemon) -> None:
        """What anybody on the machine sees of the processes, and what their own user does."""
        process = psutil.Process(daemon.process.pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                words = each.cmdline()
                self.shown[f"arguments of {' '.join(words[:5])} ({each.pid})"] = "\n".join(words)
                kind = next((word for word in words if word.startswith("osaurusd.")), "daemon")
                self.environments[kind] = each.environ()


@pytest.fixture(scope="module")
def used(smollm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    used = Used(home)
    repos = tmp_path_factory.mktemp("hub")
    stand_in.publish(repos, "org/gated", disk.model(), token=PULL_TOKEN)
    stand_in.publish(repos, "org/broken", disk.model())
    stand_in.publish(repos, "org/slow", disk.model())
    tiny = make_tiny(home / "models" / "tiny", smollm_folder, template=TEMPLATE)
    before = os.umask(0o022)
    try:
        with stand_in.running(repos) as hub:
            environment = {
                **{"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": HF_TOKEN},
                **{"OPENAI_API_KEY": OTHER_KEY, "OSAURUS_LOG_LEVEL": "debug", "NO_PROXY": "*", "no_proxy": "*"},
                "HTTPS_PROXY": f"http://user:{PASSWORD}@127.0.0.1:9",
            }
            with daemons.running(home, **environment) as daemon:
                chat(used, daemon)
                manage(used, daemon, tiny)
                pull(used, daemon, hub)
                look(used, daemon)
            used.shown["standard error"] = "\n".join(map(repr, daemon.log))
        yield used
    finally:
        os.umask(before)
        shutil.rmtree(home, ignore_errors=True)


def chat(used: Used, daemon: Daemon) -> None:
    """Ask rightly and wrongly."""
    schema = {"name": "x", "schema": {"type": "object", "properties": {SAID: {"type": SAID}}, SAID: 1}}
    tools = [{"type": "function", "function": {"name": SAID, "parameters": {"type": "object"}}}]
    bodies: dict[str, Any] = {
        "chat": {},
        "completion": {"prompt": f"{SAID} and", "echo": True, "max_tokens": 8},
        "schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
        "tools": {"tools": tools, "tool_choice": "required", "max_tokens": 60},
        "template": {"messages": [{"role": "user", "content": SAID}] * 2},
        "role": {"messages": [{"role": SAID, "content": SAID}]},
        "field": {SAID: SAID},
        "model": {"model": SAID},
    }
    headers = {"Authorization": f"Bearer {API_KEY}", "x-api-key": OTHER_KEY, "Cookie": f"session={OTHER_KEY}"}
    with httpx2.Client(base_url=daemon.url, headers=headers, timeout=120, trust_env=False) as client:
        for name, body in bodies.items():
            base = {"model": "tiny", "max_tokens": 12, "seed": 1}
            if name != "completion":
                base["messages"] = [{"role": "user", "content": SAID}]
            path = "/v1/completions" if name == "completion" else "/v1/chat/completions"
            answer = client.post(path, json={**base, **body})
            used.statuses[name] = answer.status_code
            used.answers += texts(answer.json())
        garbage = client.post("/v1/chat/completions", content=f'{{"model": "{SAID}', headers=JSON)
        used.statuses["garbage"] = garbage.status_code
        used.statuses["chunks"] = send_bad_chunks(daemon)
        lost = client.get(f"/v1/{API_KEY}/nowhere?api_key={API_KEY}&token={OTHER_KEY}")
        used.statuses["nowhere"] = lost.status_code
        used.note_processes(daemon)
        kill_midway(used, daemon, client)


JSON = {"Content-Type": "application/json"}


def send_bad_chunks(daemon: Daemon) -> int:
    """The status of a request whose body is not chunked as it says."""
    url = urlsplit(daemon.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{SAID}\r\n{SAID}".encode())
        return int(connection.makefile("rb").readline().split()[1])


def texts(answer: dict[str, Any]) -> list[str]:
    """What a model has said, if it has."""
    found = []
    for choice in answer.get("choices", []):
        message = choice.get("message", {})
        found += [choice.get("text"), message.get("content")]
        found += [call["function"]["arguments"] for call in message.get("tool_calls") or []]
    return [text for text in found if text and len(text) > 8]


def kill_midway(used: Used, daemon: Daemon, client: httpx2.Client) -> None:
    """End the worker while it answers."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": SAID}], "max_tokens": 2000, "stream": True}
    (worker,) = [each["pid"] for each in daemon.admin("GET", "/v0/workers")[1] if each["model"] == "tiny"]
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if '"content":"' in line)
        psutil.Process(worker).kill()
        used.shown["a stream that broke"] = [line for line in lines if line][-1]


def manage(used: Used, daemon: Daemon, folder: Path) -> None:
    """Change state in every way that is written down."""
    for name, (path, body) in {
        "import": ("/v0/imports", {"path": str(folder), "name": "brought"}),
        "alias": ("/v0/aliases", {"alias": "mine", "target": "tiny"}),
        "pin": ("/v0/pins", {"model": "tiny"}),
    }.items():
        used.statuses[name], told = daemon.admin("POST", path, body)
        used.shown[name] = json.dumps(told)


def pull(used: Used, daemon: Daemon, hub: stand_in.Hub) -> None:
    """Download with a token, and fail in ways that have secrets in them."""
    hub.fault("status", "model.safetensors", status=404, times=-1, where="bytes")
    asked = [("org/broken", {}), ("org/gated", {"token": PULL_TOKEN})]
    for model, more in asked:
        status, told = daemon.admin("POST", "/v0/pulls", {"model": model, **more})
        assert 202 == status, told
        used.shown[f"pull of {model}"] = json.dumps(told)
        used.note_processes(daemon)
        if model == "org/broken":
            # It asks for a new address again and again; what held it up is shown meanwhile.
            with daemon.following("POST", "/v0/pulls/watch", {"pulls": [told["id"]]}) as events:
                noted = next(event for event in events if event["pull"]["note"])
            used.shown["a pull that is held up"] = json.dumps(noted)
            used.shown["its end"] = json.dumps(daemon.admin("POST", "/v0/pulls/cancel", {"pull": told["id"]}))
            used.sent += [request["authorization"] for request in hub.requests()]
            hub.reset()
        else:
            used.shown["a pull to its end"] = json.dumps(
                daemon.admin("POST", "/v0/pulls/watch", {"pulls": [told["id"]]})
            )
    used.sent += [request["authorization"] for request in hub.requests()]
    used.shown["a search"] = json.dumps(daemon.admin("POST", "/v0/search", {"words": "x", "token": PULL_TOKEN}))


def look(used: Used, daemon: Daemon) -> None:
    """Everything that shows something."""
    for path in ("status", "diagnosis", "models", "workers", "pins", "events", "aliases", "pulls"):
        used.shown[path] = json.dumps(daemon.admin("GET", f"/v0/{path}"), ensure_ascii=False)
    with httpx2.Client(base_url=daemon.url, trust_env=False) as client:
        used.shown["metrics"] = client.get("/metrics").text
    for command in (["ps"], ["status"], ["doctor"], ["pulls", "--json"]):
        told = ctl(daemon.home, *command, HF_TOKEN=HF_TOKEN)
        used.shown[f"osaurusctl {' '.join(command)}"] = told.stdout + told.stderr


def written(home: Path) -> Iterator[tuple[Path, bytes]]:
    """All files of a home, the weights of its models aside."""
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix != ".safetensors":
            yield path, path.read_bytes()


def spilt(used: Used, words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Which of the words can be found, and where."""
    found = [(word, where) for where, text in used.shown.items() for word in words if word in text]
    for path, content in written(used.home):
        found += [(word, str(path)) for word in words if word.encode() in content]
    return found


def test_the_run_was_as_it_was_meant(used: Used) -> None:
    """Else nothing could have been spilt."""
    assert {
        **{"chat": 200, "completion": 200, "schema": 400, "tools": 200, "template": 400, "role": 400},
        **{"model": 404, "garbage": 400, "chunks": 400, "nowhere": 404, "import": 200, "alias": 200, "pin": 200},
    } == {name: status for name, status in used.statuses.items() if name != "field"}
    assert len(used.answers) >= 2
    assert any(SAID in answer for answer in used.answers)
    assert '"worker_crashed"' in used.shown["a stream that broke"]
    assert {f"Bearer {PULL_TOKEN}", f"Bearer {HF_TOKEN}", None} <= set(used.sent)
    assert '"state": "done"' in used.shown["a pull to its end"]
    assert "pulls.json" in {path.name for path, _ in written(used.home)}
    log = (used.home / "logs" / "osaurusd.log").read_text()
    assert "SIGKILL" in log
    assert '"level": "debug"' in log


def test_no_secret_is_kept_or_shown(used: Used) -> None:
    assert [] == spilt(used, SECRETS)


def test_no_prompt_and_no_answer_is_kept_or_shown(used: Used) -> None:
    assert [] == spilt(used, (SAID, *used.answers))


def test_no_process_that_works_on_models_is_given_a_secret(used: Used) -> None:
    assert {"daemon", "osaurusd.worker"} <= used.environments.keys()
    assert HF_TOKEN == used.environments["daemon"]["HF_TOKEN"]
    for kind, environment in used.environments.items():
        if kind not in ("daemon", "osaurusd.downloads.worker"):
            given = "\n".join(f"{name}={value}" for name, value in environment.items())
            assert [] == [word for word in SECRETS if word in given], kind


def test_what_a_daemon_writes_is_for_its_owner_only(used: Used) -> None:
    modes = {
        str(path.relative_to(used.home)): (stat.S_IFMT(path.lstat().st_mode), stat.S_IMODE(path.lstat().st_mode))
        for part in ("state", "run", "logs", "models/brought")
        for path in (used.home / part, *(used.home / part).rglob("*"))
    }

    assert {"state/names.json", "state/pulls.json", "state/residency.json", "logs/osaurusd.log"} <= modes.keys()
    assert {"run/admin.sock.lock", "models/brought/config.json"} <= modes.keys()
    assert {} == {name: oct(mode) for name, (kind, mode) in modes.items() if mode != USUAL_MODES[kind]}


def test_a_proxys_password_is_not_in_what_went_wrong(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    (home / "config.toml").write_text("[pulls]\npatience_seconds = 0\n")
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy"), f"http://user:{PASSWORD}@127.0.0.1:{port}")
    environment = {"HF_ENDPOINT": "http://hub.invalid", "HF_TOKEN": HF_TOKEN, "OSAURUS_LOG_LEVEL": "debug"}
    used = Used(home)
    with daemons.running(home, **environment, **proxies, NO_PROXY="", no_proxy="") as daemon:
        pull = daemon.admin("POST", "/v0/pulls", {"model": "org/m"})[1]
        *_, last = daemon.admin("POST", "/v0/pulls/watch", {"pulls": [pull["id"]]})[1]
        used.shown["events"] = json.dumps(daemon.admin("GET", "/v0/events"))
        used.shown["pulls"] = json.dumps(last)

    assert "failed" == last["pull"]["state"]
    used.shown["standard error"] = "\n".join(map(repr, daemon.log))
    assert [] == spilt(used, (PASSWORD, HF_TOKEN))
