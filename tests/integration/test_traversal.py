"""Names that are paths, and models that lead out of the store: nothing outside is read, listed, hashed or removed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import daemons
from tests.daemons import Daemon
from tests.integration.test_pulls import ctl
from tests.models import make_tiny
from tests.osaurusd.models import disk

PLANTED = "planted-beyond-the-store"

NAMES = [
    *("..", ".", "/", "../outside", "../../outside/secret.json", "../models/tiny", "./tiny", "tiny/", "org/../tiny"),
    *("/etc/passwd", "file:///etc/passwd", "~/.ssh/id_rsa", "org/../../outside", "%2e%2e%2foutside", "..%252foutside"),
    *("\\..\\outside", "tiny\x00", "../outside\x00.json", "tiny\n", "tiny\r\nx: y", " ", "-rf", "$(id)", "\u202etiny"),
    *("..\uff0foutside", "a" * 5000, "a/" * 2000),
]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that lies elsewhere, with something in it that nobody is to see."""
    folder = disk.write(tmp_path_factory.mktemp("elsewhere") / "outside", disk.model(license=PLANTED))
    card = f"---\nlicense: {PLANTED}\n---\n".encode()
    return disk.write(folder, {"README.md": card, "secret.json": json.dumps({"license": PLANTED}).encode()})


@pytest.fixture(scope="module")
def daemon(outside: Path, smollm_folder: Path) -> Iterator[Daemon]:
    home = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    models, hub = home / "models", home / "hub"
    models.mkdir(parents=True)
    (models / "whole").symlink_to(outside)
    (models / "spare").symlink_to(outside)
    disk.write(models / "part", {name: data for name, data in disk.model().items() if name != "config.json"})
    (models / "part" / "config.json").symlink_to(outside / "secret.json")
    snapshot = disk.write_hub(hub, "org/card", disk.model())
    (snapshot / "README.md").symlink_to(outside / "README.md")
    (hub / ".locks").mkdir()
    (hub / ".locks" / ".osaurus-pulls").symlink_to(outside.parent)
    make_coded(models, home, smollm_folder)
    with daemons.running(home) as running:
        yield running
    shutil.rmtree(home, ignore_errors=True)


def make_coded(models: Path, home: Path, tokenizer: Path) -> None:
    """Models that bring code: one that could do without, and one that could not."""
    code = f"open({str(home / 'was-run')!r}, 'w')\n".encode()
    for name, settings in {
        "coded": {"auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}},
        "needing": {"model_file": "own.py"},
    }.items():
        folder = make_tiny(models / name, tokenizer, **settings)
        about = json.loads((folder / "tokenizer_config.json").read_bytes())
        about |= {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
        disk.write(folder, {"own.py": code, "tokenizer_config.json": json.dumps(about).encode()})


def state_of(folder: Path) -> dict[str, object]:
    """Everything below a folder, as far as a test of ours could change it."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def ask_by_name(daemon: Daemon, name: str) -> Iterator[tuple[str, int, Any]]:
    """Every request that takes a name: what it was, and status and text of the answer."""
    model: dict[str, object] = {"model": name}
    with httpx2.Client(base_url=daemon.url, timeout=60, trust_env=False) as client:
        for prefix in ("", "/v1"):
            # Every byte escaped, so that no client tidies it up.
            escaped = "".join(f"%{byte:02x}" for byte in name.encode())
            answer = client.get(httpx2.URL(daemon.url).copy_with(raw_path=f"{prefix}/models/{escaped}".encode()))
            yield f"GET {prefix}/models/", answer.status_code, answer.text
        for path, body in {
            "/v1/chat/completions": {**model, "messages": [{"role": "user", "content": "Hi"}]},
            "/v1/completions": {**model, "prompt": "Hi"},
        }.items():
            answer = client.post(path, json=body)
            yield path, answer.status_code, answer.text
    for path, body in {
        "/v0/load": model,
        "/v0/unload": model,
        "/v0/pins": model,
        "/v0/models/details": model,
        "/v0/models/verify": model,
        "/v0/models/remove": {"models": [name], "force": True},
        "/v0/aliases": {"alias": name, "target": "coded"},
        "/v0/pulls": model,
        "/v0/pulls/cancel": {"pull": name},
        "/v0/imports": {"path": "/nonexistent", "name": name},
    }.items():
        yield path, *daemon.admin("POST", path, body)
    yield "alias to", *daemon.admin("POST", "/v0/aliases", {"alias": "mine", "target": name})
    yield "unpin", *daemon.admin("POST", "/v0/pins", {**model, "pinned": False})


def test_a_name_that_is_a_path_leads_nowhere(daemon: Daemon, outside: Path) -> None:
    before = state_of(outside.parent), state_of(daemon.home / "models"), state_of(daemon.home / "hub")
    for name in NAMES:
        for where, status, answer in ask_by_name(daemon, name):
            assert 400 <= status < 500, (name[:40], where, status, answer)
            assert PLANTED not in str(answer), (name[:40], where)

    assert before == (state_of(outside.parent), state_of(daemon.home / "models"), state_of(daemon.home / "hub"))
    assert [] == daemon.admin("GET", "/v0/aliases")[1]
    assert [] == daemon.admin("GET", "/v0/pulls")[1]
    assert [] == daemon.admin("GET", "/v0/pins")[1]["pinned"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/../v0/status",
        "/v0/status",
        "//v0/status",
    ],
)
def test_a_path_that_climbs_reaches_nothing(daemon: Daemon, path: str) -> None:
    """Byte for byte: clients tidy such paths up."""
    with httpx2.Client(trust_env=False) as client:
        url = httpx2.URL(daemon.url).copy_with(raw_path=path.encode())
        answer = client.get(url)

    assert 404 == answer.status_code
    assert "root:" not in answer.text


@pytest.mark.parametrize("command", [("show",), ("verify",), ("rm", "--force", "--yes"), ("load",), ("alias", "mine")])
def test_a_command_takes_no_path_for_a_name(daemon: Daemon, outside: Path, command: tuple[str, ...]) -> None:
    before = state_of(outside.parent)
    told = ctl(daemon.home, *command, "../../outside")

    assert told.returncode not in (0, 2), told
    assert PLANTED not in told.stdout + told.stderr
    assert before == state_of(outside.parent)


@pytest.mark.parametrize("name", ["whole", "part", "card"])
def test_of_a_model_whose_links_lead_out_nothing_is_read(daemon: Daemon, name: str) -> None:
    status, details = daemon.admin("POST", "/v0/models/details", {"model": name})
    assert (200, "unusable") == (status, details["model"]["state"])
    assert "outside the store" in details["model"]["reason"]
    assert PLANTED not in json.dumps(details)
    assert 400 == daemon.admin("POST", "/v0/models/verify", {"model": name})[0]
    assert 404 == daemon.admin("POST", "/v0/load", {"model": name})[0]
    with httpx2.Client(base_url=daemon.url, trust_env=False) as client:
        assert 404 == client.get(f"/v1/models/{name}").status_code
        assert name not in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_removing_a_model_that_is_a_link_removes_the_link(daemon: Daemon, outside: Path) -> None:
    before = state_of(outside.parent)

    assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": ["spare"]})[0]
    assert not os.path.lexists(daemon.home / "models" / "spare")
    assert before == state_of(outside.parent)


def test_pruning_follows_no_link(daemon: Daemon, outside: Path) -> None:
    before = state_of(outside.parent)

    assert (200, {"leftovers": []}) == daemon.admin("POST", "/v0/prune", {})
    assert before == state_of(outside.parent)


def test_code_that_a_model_brings_is_not_run(daemon: Daemon) -> None:
    with httpx2.Client(base_url=daemon.url, timeout=120, trust_env=False) as client:
        answers = {
            name: client.post("/v1/completions", json={"model": name, "prompt": "Hi", "max_tokens": 1}).status_code
            for name in ("coded", "needing")
        }

    assert {"coded": 200, "needing": 404} == answers
    assert not (daemon.home / "was-run").exists()
