"""Model names that are paths, and models with links out of the store: nothing outside is read, hashed or removed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import daemons
from tests.daemons import Daemon, ctl
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
    """A model outside the store, with content that must not be revealed."""
    folder = disk.write(tmp_path_factory.mktemp("elsewhere") / "outside", disk.model(license=PLANTED))
    card = f"---\nlicense: {PLANTED}\n---\n".encode()
    return disk.write(folder, {"README.md": card, "secret.json": json.dumps({"license": PLANTED}).encode()})


@pytest.fixture(scope="module")
def daemon(module_home: Path, outside: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    models, hub = module_home / "models", module_home / "hub"
    models.mkdir(parents=True)
    (models / "whole").symlink_to(outside)
    (models / "spare").symlink_to(outside)
    disk.write(models / "part", {name: data for name, data in disk.model().items() if name != "config.json"})
    (models / "part" / "config.json").symlink_to(outside / "secret.json")
    snapshot = disk.write_hub(hub, "org/card", disk.model())
    (snapshot / "README.md").symlink_to(outside / "README.md")
    (hub / ".locks").mkdir()
    (hub / ".locks" / ".osaurus-pulls").symlink_to(outside.parent)
    make_models_with_code(models, module_home, tiny_tokenizer)
    with daemons.running(module_home) as running:
        yield running


def make_models_with_code(models: Path, home: Path, tokenizer: Path) -> None:
    """Create two models with code of their own, one of which does not need it."""
    code = f"open({str(home / 'was-run')!r}, 'w')\n".encode()
    for name, settings in {
        "coded": {"auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}},
        "needing": {"model_file": "own.py"},
    }.items():
        folder = make_tiny(models / name, tokenizer, **settings)
        about = json.loads((folder / "tokenizer_config.json").read_bytes())
        about |= {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
        disk.write(folder, {"own.py": code, "tokenizer_config.json": json.dumps(about).encode()})


def snapshot(folder: Path) -> dict[str, object]:
    """Return the content of everything below a folder."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def send_name(daemon: Daemon, name: str) -> Iterator[tuple[str, int, Any]]:
    """Send every request that takes a model name; yield its description, and status and text of the response."""
    model: dict[str, object] = {"model": name}
    with httpx2.Client(base_url=daemon.url, timeout=60, trust_env=False) as client:
        for prefix in ("", "/v1"):
            # Every byte is escaped, so that the client does not normalize the path.
            escaped = "".join(f"%{byte:02x}" for byte in name.encode())
            response = client.get(httpx2.URL(daemon.url).copy_with(raw_path=f"{prefix}/models/{escaped}".encode()))
            yield f"GET {prefix}/models/", response.status_code, response.text
        for path, body in {
            "/v1/chat/completions": {**model, "messages": [{"role": "user", "content": "Hi"}]},
            "/v1/completions": {**model, "prompt": "Hi"},
        }.items():
            response = client.post(path, json=body)
            yield path, response.status_code, response.text
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


def test_name_that_is_a_path_is_rejected(daemon: Daemon, outside: Path) -> None:
    before = snapshot(outside.parent), snapshot(daemon.home / "models"), snapshot(daemon.home / "hub")
    for name in NAMES:
        for request, status, response in send_name(daemon, name):
            assert 400 <= status < 500, (name[:40], request, status, response)
            assert PLANTED not in str(response), (name[:40], request)

    assert before == (snapshot(outside.parent), snapshot(daemon.home / "models"), snapshot(daemon.home / "hub"))
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
def test_path_with_parent_segments_is_not_found(daemon: Daemon, path: str) -> None:
    """The path is sent unchanged; clients normalize such paths."""
    with httpx2.Client(timeout=60, trust_env=False) as client:
        url = httpx2.URL(daemon.url).copy_with(raw_path=path.encode())
        response = client.get(url)

    assert 404 == response.status_code
    assert "root:" not in response.text


@pytest.mark.parametrize("command", [("show",), ("verify",), ("rm", "--force", "--yes"), ("load",), ("alias", "mine")])
def test_command_rejects_a_path_as_name(daemon: Daemon, outside: Path, command: tuple[str, ...]) -> None:
    before = snapshot(outside.parent)
    result = ctl(daemon.home, *command, "../../outside")

    assert result.returncode not in (0, 2), result
    assert PLANTED not in result.stdout + result.stderr
    assert before == snapshot(outside.parent)


@pytest.mark.parametrize("name", ["whole", "part", "card"])
def test_model_with_links_out_of_the_store_is_not_read(daemon: Daemon, name: str) -> None:
    status, details = daemon.admin("POST", "/v0/models/details", {"model": name})
    assert (200, "unusable") == (status, details["model"]["state"])
    assert "outside the store" in details["model"]["reason"]
    assert PLANTED not in json.dumps(details)
    assert 400 == daemon.admin("POST", "/v0/models/verify", {"model": name})[0]
    assert 404 == daemon.admin("POST", "/v0/load", {"model": name})[0]
    with httpx2.Client(base_url=daemon.url, timeout=60, trust_env=False) as client:
        assert 404 == client.get(f"/v1/models/{name}").status_code
        assert name not in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_removing_a_linked_model_removes_the_link_only(daemon: Daemon, outside: Path) -> None:
    before = snapshot(outside.parent)

    assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": ["spare"]})[0]
    assert not os.path.lexists(daemon.home / "models" / "spare")
    assert before == snapshot(outside.parent)


def test_pruning_does_not_follow_links(daemon: Daemon, outside: Path) -> None:
    before = snapshot(outside.parent)

    assert (200, {"leftovers": []}) == daemon.admin("POST", "/v0/prune", {})
    assert before == snapshot(outside.parent)


def test_code_of_a_model_is_not_run(daemon: Daemon) -> None:
    with httpx2.Client(base_url=daemon.url, timeout=120, trust_env=False) as client:
        statuses = {
            name: client.post("/v1/completions", json={"model": name, "prompt": "Hi", "max_tokens": 1}).status_code
            for name in ("coded", "needing")
        }

    assert {"coded": 200, "needing": 404} == statuses
    assert not (daemon.home / "was-run").exists()
