import errno
import json
import os

import mlx.core as mx
import pytest

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import folder
from osaurusd.imports.worker.folder import copy_folder


@pytest.fixture
def source(tmp_path):
    """A small but complete model folder."""
    path = tmp_path / "Tiny-4bit"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    mx.save_safetensors(str(path / "model.safetensors"), {"a": mx.arange(1000), "b": mx.ones((3, 3))})
    return path


def shard(source):
    (source / "model.safetensors").unlink()
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(source / name), {f"w{number}": mx.arange(10)})
        weight_map[f"w{number}"] = name
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return source


def names(path):
    return {entry.name for entry in path.iterdir()}


def test_modules_of_an_embedding_model_are_copied(source, convert):
    (source / "modules.json").write_text("[]")
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/evil.py", "onnx/config.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    mx.save_safetensors(str(source / "2_Dense" / "model.safetensors"), {"linear.weight": mx.ones((2, 2))})

    dest = convert(source)

    copied = {path.relative_to(dest).as_posix() for path in dest.rglob("*/*")}
    assert copied == {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    recorded = json.loads((dest / "osaurus.json").read_text())["files"]
    assert copied < set(recorded)


def test_a_model_is_copied_with_all_its_files(source, convert):
    files = {
        "LICENSE",
        "LICENCE.txt",
        "README.md",
        "added_tokens.jsonl",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "qwen.tiktoken",
        "tokenizer.model",
        "vision.safetensors",
    }
    for name in files - {"vision.safetensors"}:
        (source / name).write_text(name)
    mx.save_safetensors(str(source / "vision.safetensors"), {"v": mx.ones(2)})

    dest = convert(source)

    assert names(dest) == files | {"config.json", "tokenizer.json", "model.safetensors", "osaurus.json"}
    assert all((dest / name).read_bytes() == (source / name).read_bytes() for name in names(source))


def test_code_pickles_and_folders_are_not_copied(source, convert):
    excluded = ("modeling.py", "pytorch_model.bin", "weights.pt", "state.pkl", "license.py", "run.sh", ".gitattributes")
    for name in excluded:
        (source / name).write_text("x")
    (source / "original").mkdir()
    (source / "original" / "params.json").write_text("{}")

    assert names(convert(source)) == {"config.json", "tokenizer.json", "model.safetensors", "osaurus.json"}


def test_named_chat_templates_are_copied_and_recorded(source, convert):
    templates = source / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ tools }}")
    (templates / "notes.md").write_text("notes")

    dest = convert(source)

    assert (dest / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert names(dest / "additional_chat_templates") == {"tool_use.jinja"}
    record = json.loads((dest / "osaurus.json").read_bytes())
    assert "additional_chat_templates/tool_use.jinja" in record["files"]


def test_links_to_files_are_copied_as_files(source, convert, tmp_path):
    """Snapshots in the Hugging Face cache consist of such links."""
    (source / "model.safetensors").rename(tmp_path / "blob")
    (source / "model.safetensors").symlink_to(tmp_path / "blob")

    copied = convert(source) / "model.safetensors"

    assert not copied.is_symlink()
    assert copied.read_bytes() == (tmp_path / "blob").read_bytes()


def test_a_sharded_model_is_copied_completely(source, convert):
    dest = convert(shard(source))

    assert mx.load(str(dest / "model-00002-of-00002.safetensors"))["w2"].tolist() == list(range(10))


def test_progress_counts_bytes_up_to_the_total(source, dest, monkeypatch):
    monkeypatch.setattr(folder, "_CHUNK_BYTES", 1000)
    progress = []

    copy_folder(source, dest, lambda done, total: progress.append((done, total)))

    total = sum(path.stat().st_size for path in source.iterdir())
    assert (progress[0], progress[-1]) == ((0, total), (total, total))
    assert len(progress) > 4
    assert progress == sorted(progress)


def test_files_are_copied_without_copy_file_range(source, dest, monkeypatch):
    def fail(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", fail, raising=False)

    copy_folder(source, dest, lambda done, total: None)

    assert (dest / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_files_are_cloned_where_the_file_system_can(source, dest, monkeypatch):
    cloned = []

    def clone(descriptor, target):
        cloned.append(target.name)
        target.write_bytes(os.read(descriptor, 1 << 20))
        return True

    monkeypatch.setattr(folder, "clone_file", clone)
    calls = []
    folder.copy_folder(source, dest, lambda *call: calls.append(call))
    assert sorted(cloned) == sorted(path.name for path in dest.iterdir())
    assert calls[-1][0] == calls[-1][1] > 0
    for path in dest.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()


def test_existing_provenance_is_replaced(source, convert):
    (source / "osaurus.json").write_text('{"source": "older"}')

    assert json.loads((convert(source) / "osaurus.json").read_text())["source"] == "Tiny-4bit"


# Rejected folders


def error_of(convert, source):
    with pytest.raises(ImportFailed) as caught:
        convert(source)
    return caught.value.message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "Tiny-4bit: config.json is missing"),
        ("{", "config.json: it is not valid JSON"),
        ("[" * 100_000, "config.json: it is not valid JSON"),
        ("[1]", "config.json: it is not a JSON object"),
        ('{"hidden_size": 4}', "config.json: `model_type` is missing"),
        (
            '{"model_type": "x", "model_file": "arch.py"}',
            "config.json: the model needs its own code (arch.py), which osaurusd never runs",
        ),
    ],
)
def test_an_invalid_config_is_rejected(source, convert, config, reason):
    (source / "config.json").unlink()
    if config is not None:
        (source / "config.json").write_text(config)

    assert error_of(convert, source) == reason


@pytest.mark.parametrize("files", [["vocab.json", "merges.txt"], ["tokenizer.model"], ["tekken.json"]])
def test_any_kind_of_tokenizer_is_accepted(source, convert, files):
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    for name in files:
        (source / name).write_text("{}")

    assert set(files) <= names(convert(source))


def test_a_folder_without_a_tokenizer_is_rejected(source, convert):
    (source / "tokenizer.json").rename(source / "vocab.json")

    assert error_of(convert, source).startswith("Tiny-4bit: the tokenizer is missing")


def test_a_folder_without_weights_is_rejected(source, convert):
    (source / "model.safetensors").rename(source / "adapters.safetensors")

    assert error_of(convert, source) == "no model*.safetensors"


def test_a_missing_shard_is_named(source, convert):
    (shard(source) / "model-00002-of-00002.safetensors").unlink()

    assert error_of(convert, source).startswith("model-00002-of-00002.safetensors: ")


@pytest.mark.parametrize(
    "index", ['{"weight_map": [1]}', "{}", "7", '{"weight_map": {"x": "model-1-of-2.safetensors"}}']
)
def test_an_index_that_does_not_fit_the_weights_is_copied(source, convert, index):
    (shard(source) / "model.safetensors.index.json").write_text(index)

    assert "model-00002-of-00002.safetensors" in names(convert(source))


def test_a_shard_outside_the_folder_is_rejected(source, convert, tmp_path):
    weight_map = {"a": "../secret.safetensors", "b": "model.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (source / "model.safetensors").rename(tmp_path / "secret.safetensors")
    mx.save_safetensors(str(source / "model.safetensors"), {"b": mx.ones(1)})

    assert error_of(convert, source).startswith("../secret.safetensors: ")


@pytest.mark.parametrize("change", [-1, -4000, 1, 4096])
def test_weights_of_the_wrong_length_are_rejected(source, convert, change):
    path = source / "model.safetensors"
    os.truncate(path, path.stat().st_size + change)

    assert error_of(convert, source).startswith("model.safetensors: ")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02\0\0",
        b"\xff" * 16,
        (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"{]",
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (32).to_bytes(8, "little") + b'{"a":{"data_offsets":[8, 0]   }}',
        (32).to_bytes(8, "little") + b'{"a":{"data_offsets":["0","8"]}}',
    ],
)
def test_weights_with_a_damaged_header_are_rejected(source, convert, data):
    (source / "model.safetensors").write_bytes(data)

    assert error_of(convert, source).startswith("model.safetensors: ")


def test_links_to_folders_are_rejected(source, convert, tmp_path):
    (source / "tokenizer").symlink_to(tmp_path)

    assert error_of(convert, source).startswith("tokenizer: links to folders are not followed")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_special_file_is_rejected(source, convert, make):
    make(source / "extra.json")

    assert error_of(convert, source) == "extra.json: it is not a regular file"


def test_a_broken_link_is_reported(source, convert):
    (source / "extra.json").symlink_to("nowhere")

    assert error_of(convert, source) == "extra.json: No such file or directory"
