"""`osaurusctl import --from`: models of Ollama and LM Studio."""

import hashlib
import json
import os

import pytest

from osaurusd.wire.admin import ImportDone, Route
from osaurusd.wire.imports import CheckedModel, ImportNote, ImportRoute

SHOWN = {"family": "llama", "quantization": "Q4_K_M"}


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The home directory of a user without any models."""
    path = tmp_path / "user"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return path


class Store:
    """Ollama's model store."""

    def __init__(self, root):
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def blob(self, content):
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def add(self, name="registry.ollama.ai/library/llama3.2/3b", weights=b"GGUF weights", config=None, **layers):
        """Add a model; `layers` are documents or texts by kind."""
        kinds = ({"model": weights} if weights is not None else {}) | layers
        blobs = [
            {"mediaType": f"application/vnd.ollama.image.{kind}", **self.blob(self.encode(content))}
            for kind, content in kinds.items()
        ]
        config = {"model_format": "gguf", "model_family": "llama", "file_type": "Q4_K_M"} | (config or {})
        manifest = {"schemaVersion": 2, "config": self.blob(self.encode(config)), "layers": blobs}
        self.write(name, json.dumps(manifest))
        return manifest

    def write(self, name, text):
        path = self.root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def encode(content):
        if isinstance(content, bytes):
            return content
        return content.encode() if isinstance(content, str) else json.dumps(content).encode()


@pytest.fixture
def store(user):
    return Store(user / ".ollama" / "models")


def listed(invoke, program="ollama"):
    result = invoke("import", "--from", program, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_models_are_listed_by_the_names_that_ollama_shows(store, daemon, invoke):
    for name in (
        "registry.ollama.ai/library/llama3.2/3b",
        "registry.ollama.ai/someone/tuned/latest",
        "hf.co/bartowski/Qwen3-4B-GGUF/Q4_K_M",
    ):
        store.add(name)
    daemon.checked = [CheckedModel(architecture="llama")] * 3
    result = invoke("import", "--from", "ollama")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "NAME",
        "hf.co/bartowski/Qwen3-4B-GGUF:Q4_K_M",
        "llama3.2:3b",
        "someone/tuned:latest",
    ]
    assert result.stdout.splitlines()[1].split()[1:] == ["12", "B", "llama", "Q4_K_M", "yes"]


def test_json_names_the_reason_that_the_daemon_finds(store, daemon, invoke):
    store.add()
    daemon.checked = [CheckedModel(architecture="mamba", reason='the architecture "mamba" is not supported')]
    (model,) = listed(invoke)
    assert (model["name"], model["importable"]) == ("llama3.2:3b", False)
    assert model["reason"] == 'the architecture "mamba" is not supported'
    assert (model["family"], model["quantization"], model["bytes"]) == ("llama", "Q4_K_M", 12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": None}, "no weights"),
        ({"weights": None, "config": {"remote_host": "https://ollama.com"}}, "Ollama's servers"),
        ({"weights": None, "tensor": b"x"}, "tensor by tensor"),
        ({"config": {"model_format": "safetensors"}}, "format safetensors"),
    ],
)
def test_models_that_are_no_single_file_have_a_reason(store, daemon, invoke, options, reason):
    store.add(**options)
    (model,) = listed(invoke)
    assert not model["importable"]
    assert reason in model["reason"]
    assert invoke("import", "--from", "ollama", "llama3.2:3b").exit_code == 1


@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_incomplete_weights_are_a_reason(store, daemon, invoke, change):
    layer = store.add()["layers"][0]
    blob = store.root / "blobs" / layer["digest"].replace(":", "-")
    blob.unlink() if change == "missing" else blob.write_bytes(b"GGUF")
    (model,) = listed(invoke)
    assert ("complete" in model["reason"], model["importable"]) == (True, False)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        '{"layers": [{}]}',
        '{"layers": [{"mediaType": "x", "digest": "../../x", "size": 1}]}',
    ],
)
def test_damaged_manifests_are_listed_with_a_reason(store, daemon, invoke, manifest):
    store.write("registry.ollama.ai/library/broken/latest", manifest)
    (model,) = listed(invoke)
    assert (model["name"], model["importable"]) == ("broken:latest", False)
    assert model["reason"]


def test_digest_cannot_lead_out_of_the_store(store, daemon, invoke):
    manifest = store.add()
    manifest["layers"][0]["digest"] = "sha256:../../../../../etc/passwd"
    store.write("registry.ollama.ai/library/llama3.2/3b", json.dumps(manifest))
    (model,) = listed(invoke)
    assert "invalid digest" in model["reason"]


def test_import_passes_the_blob_and_what_ollama_knows(store, daemon, invoke, fake):
    manifest = store.add(
        params={"temperature": 0.6, "repeat_penalty": 1.1, "stop": ["<|eot_id|>"], "num_ctx": 4096, "top_k": -3},
        system="Be brief.",
        template="{{ .Prompt }}",
    )
    daemon.import_events = [ImportNote(text="stop texts are not taken"), ImportDone(model=fake.model("llama3.2-3b"))]
    result = invoke("import", "--from", "ollama", "Llama3.2:3B")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("llama3.2-3b imported")
    (body,) = daemon.bodies(Route.IMPORTS)
    digest = manifest["layers"][0]["digest"].removeprefix("sha256:")
    assert body["path"] == str(store.root / "blobs" / f"sha256-{digest}")
    assert body["name"] is None
    assert body["origin"] == {
        "program": "Ollama",
        "name": "llama3.2:3b",
        "sha256": digest,
        "temperature": 0.6,
        "repetition_penalty": 1.1,
        "stop": ["<|eot_id|>"],
    }
    for text in ("system prompt", "template", "num_ctx, top_k", "stop texts are not taken"):
        assert text in result.stderr


def test_tag_latest_need_not_be_named(store, daemon, invoke, fake):
    store.add("registry.ollama.ai/library/phi4/latest")
    daemon.import_events = [ImportDone(model=fake.model("phi4"))]
    assert invoke("import", "--from", "ollama", "phi4", "--name", "mine").exit_code == 0
    assert daemon.bodies(Route.IMPORTS)[0]["name"] == "mine"


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("registry.ollama.ai/library/phi4/latest", "library/phi4"),
        ("registry.ollama.ai/library/phi4/14b", "registry.ollama.ai/library/phi4:14b"),
        ("registry.ollama.ai/user/Phi4/14b", "https://registry.ollama.ai/user/phi4:14b"),
        ("hf.co/bartowski/Phi-4-GGUF/Q4_K_M", "https://hf.co/bartowski/Phi-4-GGUF:Q4_K_M"),
    ],
)
def test_names_may_have_the_parts_that_ollama_leaves_out(store, daemon, invoke, fake, manifest, name):
    store.add(manifest)
    daemon.import_events = [ImportDone(model=fake.model("phi4"))]
    result = invoke("import", "--from", "ollama", name)
    assert result.exit_code == 0, result.stderr


def test_unknown_tag_lists_the_tags_of_the_model(store, daemon, invoke):
    store.add()
    result = invoke("import", "--from", "ollama", "library/Llama3.2")
    assert result.exit_code == 4
    assert 'no model "library/Llama3.2", but llama3.2:3b' in result.stderr


def test_adapters_and_projectors_are_named_as_not_taken(store, daemon, invoke):
    store.add(adapter=b"adapter", projector=b"projector")
    daemon.checked = [CheckedModel()]
    (model,) = listed(invoke)
    assert any("adapter" in note for note in model["notes"])
    assert any("image encoder" in note for note in model["notes"])


@pytest.mark.parametrize("program", ["ollama", "lmstudio"])
def test_unknown_name_exits_with_model_not_found(user, daemon, invoke, program):
    result = invoke("import", "--from", program, "absent")
    assert result.exit_code == 4
    assert f"osaurusctl import --from {program}" in result.stderr


@pytest.mark.parametrize("program", ["ollama", "lmstudio"])
def test_nothing_is_listed_where_the_program_has_no_models(user, invoke, program):
    result = invoke("import", "--from", program)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no models" in result.stderr
    assert listed(invoke, program) == []


def test_store_can_be_elsewhere(user, daemon, invoke, monkeypatch, tmp_path):
    Store(tmp_path / "disk").add()
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "disk"))
    daemon.checked = [CheckedModel()]
    assert [model["name"] for model in listed(invoke)] == ["llama3.2:3b"]


def test_store_is_not_changed(store, daemon, invoke, fake):
    store.add(template="x")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in store.root.rglob("*")}
    daemon.checked = [CheckedModel()]
    daemon.import_events = [ImportDone(model=fake.model("m"))]
    listed(invoke)
    invoke("import", "--from", "ollama", "llama3.2:3b")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in store.root.rglob("*")} == before


def test_list_without_a_daemon_exits_with_not_running(store, ctl):
    store.add()
    assert ctl("import", "--from", "ollama").returncode == 3


@pytest.mark.parametrize("arguments", [(), ("--name", "x", "--from", "ollama"), ("--from", "other"), ("absent.gguf",)])
def test_incomplete_arguments_are_usage_errors(user, invoke, arguments):
    assert invoke("import", *arguments).exit_code == 2


@pytest.fixture
def lm_studio(user):
    """LM Studio's folder with GGUF files, one in parts, and an MLX model."""
    root = user / ".lmstudio" / "models"
    for name in (
        "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf",
        "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q8_0.gguf",
        "lmstudio-community/Qwen3-4B-GGUF/mmproj-Qwen3-4B-F16.gguf",
        "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B.mmproj-F16.gguf",
        "unsloth/Huge-GGUF/Q8_0/Huge-Q8_0-00001-of-00002.gguf",
        "unsloth/Huge-GGUF/Q8_0/Huge-Q8_0-00002-of-00002.gguf",
        "big/Large/large-Q6_K-00001-of-00002.gguf",
        "big/Large/large-Q6_K-00002-of-00002.gguf",
        "big/Half/half-Q6_K-00001-of-00002.gguf",
        "mlx-community/Tiny-4bit/model.safetensors",
        "mlx-community/Tiny-4bit/config.json",
        "mlx-community/Tiny-4bit/tokenizer.json",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}" if name.endswith("json") else b"12345")
    return root


def test_files_and_folders_of_lm_studio_are_listed(lm_studio, daemon, invoke):
    daemon.checked = [
        CheckedModel(architecture="large"),
        CheckedModel(architecture="qwen3"),
        CheckedModel(architecture="qwen3"),
        CheckedModel(architecture="llama", quantization="4-bit"),
        CheckedModel(architecture="huge"),
    ]
    models = listed(invoke, "lmstudio")
    assert [(model["name"], model["quantization"], model["family"], model["bytes"]) for model in models] == [
        ("big/Half/half-Q6_K-00001-of-00002.gguf", "Q6_K", None, 5),
        ("big/Large/large-Q6_K-00001-of-00002.gguf", "Q6_K", "large", 10),
        ("lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf", "Q4_K_M", "qwen3", 5),
        ("lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q8_0.gguf", "Q8_0", "qwen3", 5),
        ("mlx-community/Tiny-4bit", "4-bit", "llama", 9),
        ("unsloth/Huge-GGUF/Q8_0/Huge-Q8_0-00001-of-00002.gguf", "Q8_0", "huge", 10),
    ]
    assert models[1]["parts"] == [f"large-Q6_K-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert models[0]["reason"] == "the part half-Q6_K-00002-of-00002.gguf is missing"
    assert "image encoder" in models[2]["notes"][0]
    (body,) = daemon.bodies(ImportRoute.CHECKS)
    assert [item["format"] for item in body["items"]] == ["gguf", "gguf", "gguf", "mlx", "gguf"]
    assert body["items"][3]["names"] == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Qwen3-4B-Q8_0.gguf", "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q8_0.gguf"),
        ("qwen3-4b-q4_k_m", "lmstudio-community/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf"),
        ("huge-gguf", "unsloth/Huge-GGUF/Q8_0/Huge-Q8_0-00001-of-00002.gguf"),
        ("big/large", "big/Large/large-Q6_K-00001-of-00002.gguf"),
        ("tiny-4bit", "mlx-community/Tiny-4bit"),
        ("mlx-community/Tiny-4bit", "mlx-community/Tiny-4bit"),
    ],
)
def test_models_of_lm_studio_are_found_by_a_part_of_their_path(lm_studio, daemon, invoke, fake, name, path):
    daemon.import_events = [ImportDone(model=fake.model("m"))]
    result = invoke("import", "--from", "lmstudio", name)
    assert result.exit_code == 0, result.stderr
    (body,) = daemon.bodies(Route.IMPORTS)
    assert (body["path"], body["origin"]["name"]) == (str(lm_studio / path), path)


def test_ambiguous_name_lists_the_candidates(lm_studio, daemon, invoke):
    result = invoke("import", "--from", "lmstudio", "qwen3-4b-gguf")
    assert result.exit_code == 1
    assert "Qwen3-4B-Q4_K_M.gguf" in result.stderr
    assert "Qwen3-4B-Q8_0.gguf" in result.stderr


def test_moved_folder_of_lm_studio_is_found(user, daemon, invoke):
    folder = user / "disk" / "publisher" / "model"
    folder.mkdir(parents=True)
    (folder / "m-Q4_0.gguf").touch()
    (user / "lms").mkdir()
    (user / ".lmstudio-home-pointer").write_text(str(user / "lms"))
    (user / "lms" / "settings.json").write_text(json.dumps({"downloadsFolder": str(user / "disk")}))
    daemon.checked = [CheckedModel()]
    assert [model["name"] for model in listed(invoke, "lmstudio")] == ["publisher/model/m-Q4_0.gguf"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_unreadable_store_is_an_error(store, daemon, invoke):
    store.add()
    (store.root / "blobs").chmod(0)
    (model,) = listed(invoke)
    assert not model["importable"]
