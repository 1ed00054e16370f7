"""Importing from the stores of other programs with a real daemon and the command line."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny
from tests.osaurusd.imports.worker.gguf_writer import TinyLlama, write_gguf
from tests.osaurusd.imports.worker.ollama_files import Gemma3

NAME = "smollm2:135m-instruct-q4_1"


@pytest.fixture(scope="module")
def daemon(module_home: Path, smollm_gguf: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    user = module_home / "user"
    add_to_ollama(user / ".ollama" / "models", smollm_gguf)
    folder = user / ".lmstudio" / "models" / "mlx-community" / "Tiny-Model-4bit"
    make_tiny(folder, tiny_tokenizer)
    add_split_model(folder.parent.parent / "publisher" / "Split-GGUF")
    with daemons.running(module_home, HOME=str(user)) as running:
        yield running


def add_split_model(folder: Path) -> None:
    """Add a GGUF model in two files."""
    folder.mkdir(parents=True)
    tiny = TinyLlama()
    tensors = list(tiny.tensors().items())
    halves = (tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :])
    for number, half in enumerate(halves):
        keys = {"split.no": number, "split.count": 2, **(tiny.metadata() if number == 0 else {})}
        write_gguf(folder / f"Split-Model-F32-0000{number + 1}-of-00002.gguf", keys, dict(half))


def add_to_ollama(store: Path, gguf: Path) -> None:
    (store / "blobs").mkdir(parents=True)

    def blob(kind: str, content: bytes | None) -> dict[str, object]:
        data = gguf.read_bytes() if content is None else content
        digest = hashlib.sha256(data).hexdigest()
        path = store / "blobs" / f"sha256-{digest}"
        if content is None:
            path.symlink_to(gguf)
        else:
            path.write_bytes(data)
        return {
            "mediaType": f"application/vnd.ollama.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    config = json.dumps({"model_format": "gguf", "model_family": "llama", "file_type": "Q4_1"}).encode()
    parameters = json.dumps({"temperature": 0.2, "stop": ["<|im_start|>", "User:"]}).encode()
    layers = [blob("model", None), blob("params", parameters), blob("system", b"You are a bot.")]
    other = write_gguf(store / "other.gguf", {"general.architecture": "mamba"}, {"a.weight": ("F32", np.ones((2, 32)))})
    unsupported = blob("model", other.read_bytes())
    other.unlink()
    gemma = Gemma3("vision").write(store / "gemma.gguf")
    stop = json.dumps({"stop": ["<end_of_turn>"], "temperature": 1, "top_k": 64, "top_p": 0.95}).encode()
    multimodal = [blob("model", gemma.read_bytes()), blob("params", stop), blob("template", b"{{ .Prompt }}")]
    gemma.unlink()
    models = {"smollm2/135m-instruct-q4_1": layers, "mamba/latest": [unsupported], "gemma3/4b": multimodal}
    for name, weights in models.items():
        manifest = store / "manifests" / "registry.ollama.ai" / "library" / name
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "config": blob("config", config), "layers": weights}))


def ctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemons.ctl(daemon.home, *arguments, HOME=str(daemon.home / "user"))


def test_list_says_what_can_be_imported(daemon: Daemon) -> None:
    models = {model["name"]: model for model in json.loads(ctl(daemon, "import", "--from", "ollama", "--json").stdout)}
    assert models[NAME]["importable"], models[NAME]["reason"]
    assert not models["mamba:latest"]["importable"]
    assert "mamba" in models["mamba:latest"]["reason"]
    table = ctl(daemon, "import", "--from", "lmstudio").stdout
    assert [
        ["mlx-community/Tiny-Model-4bit", "yes"],
        ["publisher/Split-GGUF/Split-Model-F32-00001-of-00002.gguf", "yes"],
    ] == [[line.split()[0], line.split()[-1]] for line in table.splitlines()[1:]]


def test_model_of_ollama_is_imported_with_its_parameters(daemon: Daemon) -> None:
    run = ctl(daemon, "import", "--from", "ollama", NAME)
    assert 0 == run.returncode, run.stderr
    assert run.stdout.startswith("smollm2-135m-instruct imported")
    assert "system prompt" in run.stderr
    assert "'User:'" in run.stderr

    folder = daemon.home / "models" / "smollm2-135m-instruct"
    generation = json.loads((folder / "generation_config.json").read_text())
    tokens = {
        token["content"]: token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert 0.2 == generation["temperature"]
    assert tokens["<|im_start|>"] in generation["eos_token_id"]
    record = json.loads((folder / "osaurus.json").read_text())
    assert ("Ollama", NAME) == (record["program"], record["source"])
    assert 0 == ctl(daemon, "verify", "smollm2-135m-instruct").returncode


def test_model_with_an_image_encoder_is_imported_as_a_text_model(daemon: Daemon) -> None:
    models = {model["name"]: model for model in json.loads(ctl(daemon, "import", "--from", "ollama", "--json").stdout)}
    assert models["gemma3:4b"]["importable"], models["gemma3:4b"]["reason"]

    run = ctl(daemon, "import", "--from", "ollama", "gemma3:4b")
    assert 0 == run.returncode, run.stderr
    notes = [
        "the image encoder is left out; the result accepts text only",
        "the file has no chat template; a template for Gemma 3 is added",
    ]
    assert all(note in run.stderr for note in notes)

    generation = json.loads((daemon.home / "models" / "gemma3-4b" / "generation_config.json").read_text())
    assert ([1, 5], 64) == (generation["eos_token_id"], generation["top_k"])
    shown = ctl(daemon, "show", "gemma3-4b").stdout
    assert all(note in shown for note in notes)
    answer = ctl(daemon, "run", "gemma3-4b", "hello", "--max-tokens", "3")
    assert 0 == answer.returncode, answer.stderr


def test_mlx_model_of_lm_studio_is_imported_under_its_name(daemon: Daemon) -> None:
    run = ctl(daemon, "import", "--from", "lmstudio", "tiny-model-4bit")
    assert 0 == run.returncode, run.stderr
    assert (daemon.home / "models" / "tiny-model-4bit" / "model.safetensors").exists()


def test_split_model_of_lm_studio_is_imported_as_one(daemon: Daemon) -> None:
    run = ctl(daemon, "import", "--from", "lmstudio", "split-gguf")
    assert 0 == run.returncode, run.stderr
    assert run.stdout.startswith("split-model imported")


def test_missing_chat_template_is_noted_once_by_both_ways_to_import(daemon: Daemon) -> None:
    note = "the model has no chat template: chats are plain text"
    path = daemon.home / "user/.lmstudio/models/publisher/Split-GGUF/Split-Model-F32-00001-of-00002.gguf"

    direct = ctl(daemon, "import", str(path), "--name", "direct")
    listed = ctl(daemon, "import", "--from", "lmstudio", "split-gguf", "--name", "listed")

    assert [(0, 1), (0, 1)] == [(run.returncode, run.stderr.count(note)) for run in (direct, listed)]


def test_damaged_blob_is_refused_and_leaves_no_files(daemon: Daemon, tmp_path: Path) -> None:
    store = tmp_path / "models"
    shutil.copytree(daemon.home / "user" / ".ollama" / "models", store)
    blob = max((store / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.unlink()
    blob.write_bytes(content)
    arguments = ("import", "--from", "ollama", NAME, "--name", "damaged")
    run = daemons.ctl(daemon.home, *arguments, OLLAMA_MODELS=str(store))
    assert 1 == run.returncode
    assert "checksum is not the one that Ollama recorded" in run.stderr
    assert not (daemon.home / "models" / "damaged").exists()


def test_unsupported_model_is_refused_with_the_reason(daemon: Daemon) -> None:
    run = ctl(daemon, "import", "--from", "ollama", "mamba")
    assert 1 == run.returncode
    assert "mamba" in run.stderr


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": [], "files": "relative"}, "files"),
        ({"items": [{"format": "zip", "file": "x"}], "files": "/x"}, "format"),
    ],
)
def test_invalid_check_is_rejected_by_field(daemon: Daemon, body: dict[str, object], field: str) -> None:
    status, answer = daemon.admin("POST", "/v0/imports/check", body)
    assert 400 == status
    assert field in answer["error"]["message"]
