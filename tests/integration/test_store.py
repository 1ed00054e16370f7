"""Models on disk through the real daemon: names, details, removal, verification, configuration."""

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import NotFoundError, OpenAI

from tests import daemons
from tests.daemons import Daemon, UnixConnection
from tests.models import NO_END_TOKEN, TINY_VOCABULARY, make_tiny
from tests.osaurusd.models.disk import repo_folder, write_hub

REQUEST = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
HEADERS = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}
REPO = "org/Tiny-Model-4bit"
CONTEXT_LENGTH = 65536


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that generates until its context is full, which takes minutes."""
    config = {"eos_token_id": NO_END_TOKEN, "max_position_embeddings": CONTEXT_LENGTH}
    return make_tiny(tmp_path_factory.mktemp("tiny"), tiny_tokenizer, **config)


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    """The files of this model."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def shared_daemon(module_home: Path) -> Iterator[Daemon]:
    with daemons.running(module_home) as running:
        yield running


@pytest.fixture
def daemon(shared_daemon: Daemon, files: dict[str, bytes]) -> Iterator[Daemon]:
    """A daemon with one model in the Hugging Face cache, which is not loaded."""
    hub = shared_daemon.home / "hub"
    shutil.rmtree(hub, ignore_errors=True)
    write_hub(hub, REPO, files)
    yield shared_daemon
    shared_daemon.admin("POST", "/v0/unload", {"force": True})
    if (config := shared_daemon.home / "config.toml").exists():
        config.unlink()
        assert 200 == shared_daemon.admin("POST", "/v0/reload", {})[0]


@contextlib.contextmanager
def open_client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def test_alias_is_listed_and_served_until_it_is_removed(daemon: Daemon) -> None:
    assert (200, {"alias": "mine", "target": "tiny-model"}) == daemon.admin(
        "POST", "/v0/aliases", {"alias": "mine", "target": "tiny-model"}
    )
    with open_client(daemon) as client:
        assert ["mine", "tiny-model"] == sorted(model.id for model in client.models.list())
        assert "tiny-model" == client.chat.completions.create(model="mine", **REQUEST).model

        assert 200 == daemon.admin("POST", "/v0/aliases", {"alias": "mine"})[0]
        assert ["tiny-model"] == [model.id for model in client.models.list()]
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="mine", **REQUEST)


def test_names_and_aliases_survive_a_restart_and_new_models(home: Path, files: dict[str, bytes]) -> None:
    write_hub(home / "hub", "later/Tiny-Model", files)
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/aliases", {"alias": "mine", "target": "later/tiny-model"})
    # Its files are older and its name sorts first, but the name is already assigned.
    write_hub(home / "hub", "a/Tiny-Model", files)
    with daemons.running(home) as daemon:
        models = {model["repo"]: model for model in daemon.admin("GET", "/v0/models")[1]}

    assert "tiny-model" == models["later/Tiny-Model"]["name"]
    assert ["mine"] == models["later/Tiny-Model"]["aliases"]
    assert "a/tiny-model" == models["a/Tiny-Model"]["name"]


@pytest.mark.long
def test_daemon_starts_with_a_damaged_names_file(home: Path, files: dict[str, bytes]) -> None:
    write_hub(home / "hub", REPO, files)
    (home / "state").mkdir(mode=0o700)
    (home / "state" / "names.json").write_bytes(b"{garbage")
    with daemons.running(home) as daemon:
        assert ["tiny-model"] == [model["name"] for model in daemon.admin("GET", "/v0/models")[1]]

    assert b"{garbage" == (home / "state" / "names.damaged.json").read_bytes()


def test_details_are_read_from_the_files(daemon: Daemon, files: dict[str, bytes]) -> None:
    status, details = daemon.admin("POST", "/v0/models/details", {"model": "tiny-model"})

    assert 200 == status
    assert sum(len(content) for content in files.values()) == details["model"]["bytes"]
    assert TINY_VOCABULARY * 32 < details["model"]["parameters"] < TINY_VOCABULARY * 32 + 100_000
    assert 4 * details["model"]["parameters"] == details["weights_bytes"]
    # Layers, keys and values, values per KV head, bytes per value.
    assert 2 * 2 * 16 * 2 == details["kv_bytes_per_token"]
    assert details["weights_bytes"] + CONTEXT_LENGTH * details["kv_bytes_per_token"] == details["full_context_bytes"]
    assert set(files) == {file["name"] for file in details["files"]}
    assert (False, False, False) == (details["tools"], details["reasoning"], details["vision"])


def test_removing_a_model_unloads_it_and_frees_its_disk_space(daemon: Daemon, files: dict[str, bytes]) -> None:
    home = daemon.home
    daemon.admin("POST", "/v0/load", {"model": "tiny-model"})
    size = sum(len(content) for content in files.values())
    expected = {"removed": [{"name": "tiny-model", "repo": REPO, "bytes": size}]}

    assert (200, expected) == daemon.admin("POST", "/v0/models/remove", {"models": ["tiny-model"], "dry_run": True})
    assert repo_folder(home / "hub", REPO).exists()
    assert (200, expected) == daemon.admin("POST", "/v0/models/remove", {"models": ["tiny-model"]})
    assert not repo_folder(home / "hub", REPO).exists()
    assert [] == daemon.admin("GET", "/v0/models")[1]
    assert [] == psutil.Process(daemon.process.pid).children()


def test_busy_model_is_only_removed_with_force(daemon: Daemon) -> None:
    body = {"model": "tiny-model", **REQUEST, "max_tokens": 60_000, "stream": True}
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:
        connection.request("POST", "/chat/completions", json.dumps(body), HEADERS)
        connection.getresponse().readline()
        status, reply = daemon.admin("POST", "/v0/models/remove", {"models": ["tiny-model"]})
        assert (409, "busy") == (status, reply["error"]["code"])
        assert repo_folder(daemon.home / "hub", REPO).exists()

        assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": ["tiny-model"], "force": True})[0]
    assert not repo_folder(daemon.home / "hub", REPO).exists()


def test_imported_model_is_verified_and_removed(daemon: Daemon, folder: Path) -> None:
    daemon.admin("POST", "/v0/imports", {"path": str(folder), "name": "mine"})
    done = daemon.admin("POST", "/v0/models/verify", {"model": "mine"})[1][-1]
    assert {"intact"} == {file["state"] for file in done["files"]}

    with (daemon.home / "models" / "mine" / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)
        weights.seek(-1, 2)
        weights.write(bytes([last[0] ^ 1]))
    done = daemon.admin("POST", "/v0/models/verify", {"model": "mine"})[1][-1]
    assert ["model.safetensors"] == [file["name"] for file in done["files"] if file["state"] == "changed"]

    assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": ["mine"]})[0]
    assert [] == list((daemon.home / "models").iterdir())


def test_verification_detects_a_flipped_byte(daemon: Daemon) -> None:
    (snapshot,) = (repo_folder(daemon.home / "hub", REPO) / "snapshots").iterdir()
    blob = (snapshot / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    done = daemon.admin("POST", "/v0/models/verify", {"model": "tiny-model"})[1][-1]

    assert "done" == done["event"]
    assert ["model.safetensors"] == [file["name"] for file in done["files"] if file["state"] != "intact"]


@pytest.mark.long
def test_killed_removal_leaves_no_incomplete_model(home: Path, folder: Path) -> None:
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/imports", {"path": str(folder), "name": "mine"})
        # Kill the daemon and its children at an arbitrary point of the removal.
        with contextlib.closing(UnixConnection(daemon.socket)) as connection:
            connection.request("POST", "/v0/models/remove", json.dumps({"models": ["mine"]}), HEADERS)
            children = psutil.Process(daemon.process.pid).children()
            processes: list[Any] = [*children, daemon.process]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            daemon.process.wait()
            psutil.wait_procs(children, 60)
    with daemons.running(home) as restarted:
        states = [model["state"] for model in restarted.admin("GET", "/v0/models")[1]]
        left = [path.name for path in (home / "models").iterdir()]

    assert states in ([], ["available"])
    assert left in ([], ["mine"])


def test_prune_lists_and_removes_leftovers(daemon: Daemon) -> None:
    leftover = daemon.home / "models" / ".importing-0123"
    leftover.mkdir()
    (leftover / "weights").write_bytes(bytes(1000))
    expected = {"leftovers": [{"path": str(leftover), "bytes": 1000, "what": "unfinished import"}]}

    assert (200, expected) == daemon.admin("POST", "/v0/prune", {"dry_run": True})
    assert leftover.exists()
    assert (200, expected) == daemon.admin("POST", "/v0/prune", {})
    assert not leftover.exists()


def test_reload_applies_changes_and_reports_those_that_need_a_restart(daemon: Daemon) -> None:
    config = daemon.home / "config.toml"
    with open_client(daemon) as client:
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="gpt-4o", **REQUEST)
        config.write_text('default_model = "tiny-model"\ndefault_for_unknown = true\n[server]\nhost = "127.0.0.1"\n')
        status, reply = daemon.admin("POST", "/v0/reload", {})
        assert (200, ["default_for_unknown", "default_model"], ["server.host"]) == (
            status,
            sorted(reply["applied"]),
            reply["needs_restart"],
        )
        assert "tiny-model" == client.chat.completions.create(model="gpt-4o", **REQUEST).model

        for invalid in ("default_modle = 1\n", '[worker]\nblas = "/nowhere/lib.so"\n'):
            config.write_text(invalid)
            status, reply = daemon.admin("POST", "/v0/reload", {})
            assert (500, "config_error") == (status, reply["error"]["code"])
        assert "tiny-model" == client.chat.completions.create(model="gpt-4o", **REQUEST).model


def test_models_added_and_deleted_on_disk_are_noticed_without_a_restart(
    daemon: Daemon, files: dict[str, bytes]
) -> None:
    home = daemon.home
    with open_client(daemon) as client:
        assert ["tiny-model"] == [model.id for model in client.models.list()]
        write_hub(home / "hub", "org/Other", files)
        assert "other" == client.chat.completions.create(model="other", **REQUEST).model
        shutil.rmtree(repo_folder(home / "hub", "org/Other"))
        daemon.admin("POST", "/v0/unload", {"force": True})
        assert ["tiny-model"] == [model["name"] for model in daemon.admin("GET", "/v0/models")[1]]


@pytest.mark.long
def test_models_with_irregular_files_are_listed_and_served(home: Path, tiny_tokenizer: Path) -> None:
    folder = make_tiny(home / "models" / "[tiny] model*", tiny_tokenizer, template=None)
    template = (tiny_tokenizer / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    config = folder / "config.json"
    config.write_text(config.read_text(), "utf-8-sig")
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer_config = {**tokenizer_config, "tokenizer_class": "MistralCommonBackend"}
    tokenizer_config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    with daemons.running(home) as running, open_client(running) as client:
        (model,) = client.models.list().data
        assert 2 == client.chat.completions.create(model=model.id, **REQUEST).usage.completion_tokens


def test_models_of_lm_studio_are_served_if_the_user_agrees_but_never_removed(
    home: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    store = tmp_path / ".lmstudio" / "models"
    folder = make_tiny(store / "lmstudio-community" / "Tiny-MLX-4bit", tiny_tokenizer)
    (home / "config.toml").write_text('[models]\nroots = ["/missing"]\n')

    def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return daemons.ctl(home, *arguments, HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")

    with daemons.running(home) as daemon, open_client(daemon) as client:
        assert [] == client.models.list().data
        diagnosis = ctl("doctor").stdout
        assert "warning  models: /missing in `models.roots` does not exist" in diagnosis
        assert "1 model of LM Studio" in diagnosis
        assert 0 == ctl("config", "discover", "--yes").returncode
        assert client.chat.completions.create(model="lmstudio-community/tiny-mlx-4bit", **REQUEST).choices
        removal = ctl("rm", "tiny-mlx", "--yes")
        assert (1, True) == (removal.returncode, "belongs to another program" in removal.stderr)
        body = {"models": ["lmstudio-community/tiny-mlx-4bit"], "force": True}
        status, reply = daemon.admin("POST", "/v0/models/remove", body)
        assert (400, "invalid_request") == (status, reply["error"]["code"])
        assert "belongs to another program" in reply["error"]["message"]
    assert (folder / "config.json").exists()
