import json
from pathlib import Path

import msgspec
import pytest

from osaurusd.models import metadata
from osaurusd.models.metadata import Provenance
from osaurusd.models.record import Capabilities, GenerationDefaults, ModelRecord
from osaurusd.wire.admin import Availability


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_context_length": 2048}, 2048),
        ({"max_seq_len": 2049}, 2049),
        ({"max_sequence_length": 2050}, 2050),
        ({"seq_length": 2051}, 2051),
        ({"n_positions": 1024}, 1024),
        ({"n_ctx": 1025}, 1025),
        ({"n_ctx": 1, "max_position_embeddings": 2}, 2),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 1, "text_config": {"max_position_embeddings": 4096}}, 1),
        ({}, None),
        ({"text_config": None}, None),
        ({"text_config": "llama"}, None),
        ({"max_position_embeddings": None, "n_ctx": 7}, 7),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "8192"}, None),
        ({"max_position_embeddings": [8192]}, None),
        ({"max_position_embeddings": True}, None),
    ],
)
def test_context_length_is_read_from_any_known_key(config, tokens):
    length = metadata.context_length(config)

    assert (type(length), length) == (type(tokens), tokens)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({}, None),
        ({"quantization": None}, None),
        ({"quantization": {}}, None),
        ({"quantization": "4bit"}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4-bit"),
        ({"quantization": {"group_size": 64, "bits": 8, "mode": "affine"}}, "8-bit"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"group_size": 64, "bits": 3}}, "3-bit"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 8}}, "4-bit"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "4-bit"),
        ({"quantization": {"group_size": 64}}, "quantized"),
    ],
)
def test_quantization_has_a_short_label(config, label):
    assert metadata.quantization(config) == label


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        (b'{"temperature": 0.6, "top_p": 0.9}', GenerationDefaults(temperature=0.6, top_p=0.9)),
        (b'{"temperature": 0}', GenerationDefaults(temperature=0.0)),
        (b'{"temperature": 2, "top_p": 1}', GenerationDefaults(temperature=2.0, top_p=1.0)),
        (
            b'{"do_sample": true, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}',
            GenerationDefaults(temperature=1.0, top_k=20, min_p=0.05, repetition_penalty=1.05),
        ),
        (b'{"do_sample": false, "temperature": 0.6, "top_k": 0}', GenerationDefaults(temperature=0.0, top_k=0)),
        (b'{"do_sample": true}', GenerationDefaults(temperature=1.0)),
        (b'{"top_p": 0.9}', GenerationDefaults(temperature=1.0, top_p=0.9)),
        (b'{"repetition_penalty": 1.1}', GenerationDefaults(repetition_penalty=1.1)),
        (b'{"do_sample": null, "temperature": 0.6}', GenerationDefaults(temperature=0.6)),
        (b'{"top_k": -1, "min_p": 1.5, "repetition_penalty": 0}', GenerationDefaults()),
        (b'{"top_k": 1e12, "min_p": "0", "repetition_penalty": 11}', GenerationDefaults()),
        (b'{"top_p": 0}', GenerationDefaults()),
        (b'{"temperature": null, "top_p": null}', GenerationDefaults()),
        (b'{"temperature": -1, "top_p": 1.5}', GenerationDefaults()),
        (b'{"temperature": 2.01, "top_p": -0.1}', GenerationDefaults()),
        (b'{"temperature": "0.6", "top_p": [0.9]}', GenerationDefaults()),
        (b'{"temperature": true, "top_p": true}', GenerationDefaults()),
        (b'{"temperature": NaN, "top_p": Infinity}', GenerationDefaults()),
        (b'{"temperature": 1' + b"0" * 400 + b"}", GenerationDefaults()),
        (b'{"eos_token_id": [1, 2]}', GenerationDefaults()),
        (b"[]", GenerationDefaults()),
        (b"garbage", GenerationDefaults()),
        (b"\xff", GenerationDefaults()),
        (b"", GenerationDefaults()),
        (b"[" * 100_000, GenerationDefaults()),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, bytes) else "",
)
def test_generation_defaults_ignore_invalid_values(tmp_path, content, defaults):
    (tmp_path / "generation_config.json").write_bytes(content)

    assert metadata.generation_defaults(tmp_path) == defaults


def test_generation_defaults_are_empty_without_the_file(tmp_path):
    assert metadata.generation_defaults(tmp_path) == GenerationDefaults()


def test_json_object_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")

    assert metadata.read_json_object(tmp_path / "config.json") == {"a": [1, "ü"]}


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("null", "NoneType"), ('"x"', "str"), ("1", "int")])
def test_other_json_values_are_rejected(tmp_path, content, kind):
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ValueError, match=rf"^config\.json must contain a JSON object, not {kind}$"):
        metadata.read_json_object(tmp_path / "config.json")


def test_missing_json_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        metadata.read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("config", "files", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, (), "generate"),
        ({}, (), "generate"),
        ({"architectures": "LlamaForCausalLM"}, (), "generate"),
        ({"architectures": ["Qwen3ForCausalLM"]}, ("modules.json",), "embed"),
        ({"architectures": [None, "Qwen3ForSequenceClassification"]}, (), "rerank"),
        ({"model_type": "bert"}, (), "embed"),
    ],
)
def test_task_follows_from_architecture_and_files(config, files, task):
    assert metadata.task(config, files) == task


TOOLS_TEMPLATE = "{% for tool in tools %}{{ tool }}{% endfor %}"


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {}, Capabilities()),
        ({"chat_template.jinja": "{{ messages }}"}, {}, Capabilities(chat=True)),
        ({"chat_template.jinja": TOOLS_TEMPLATE}, {}, Capabilities(chat=True, tools=True)),
        ({"chat_template.jinja": "<think>"}, {}, Capabilities(chat=True, reasoning=True)),
        ({"tokenizer_config.json": {"chat_template": TOOLS_TEMPLATE}}, {}, Capabilities(chat=True, tools=True)),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "a", "template": "x"}, {"template": "<think>"}]}},
            {},
            Capabilities(chat=True, reasoning=True),
        ),
        ({"chat_template.json": {"chat_template": "x"}}, {"vision_config": {}}, Capabilities(chat=True)),
        (
            {"chat_template.json": {"chat_template": "x"}, "processor_config.json": "{}"},
            {"model_type": "smolvlm", "vision_config": {}},
            Capabilities(chat=True, vision=True),
        ),
        ({"tokenizer_config.json": "garbage"}, {}, Capabilities()),
        ({"tokenizer_config.json": {"chat_template": 1}}, {}, Capabilities()),
    ],
)
def test_capabilities_follow_from_config_and_chat_template(tmp_path, files, config, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    assert metadata.capabilities(tmp_path, config, files) == expected


def build_record(path: Path, **fields):
    return ModelRecord(
        name="m", repo="org/m", path=path, source="hub", state=Availability.AVAILABLE, created=0, **fields
    )


@pytest.mark.parametrize(
    ("files", "license_name"),
    [
        ({"README.md": "---\nlicense: mit\n---\nlicense: other\n"}, "mit"),
        ({"README.md": "license: mit\n", "osaurus.json": '{"license": "apache-2.0"}'}, "apache-2.0"),
        ({"osaurus.json": "[]", "config.json": '{"license": "gemma"}'}, "gemma"),
        ({"config.json": '{"license": 1}'}, None),
        ({}, None),
    ],
)
def test_license_comes_from_model_card_import_record_or_config(tmp_path, files, license_name):
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    assert metadata.read_provenance(build_record(tmp_path)) == Provenance(license=license_name)


def test_commit_is_the_name_of_the_snapshot(tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)

    assert metadata.read_provenance(build_record(snapshot)).commit == "abc"


def test_nothing_is_read_from_a_model_with_links_out_of_the_store(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")

    assert metadata.read_provenance(build_record(tmp_path, escapes=True)) == Provenance()


def test_provenance_of_an_import_has_its_source_and_what_it_changed(tmp_path):
    group = {"type": "Q6_K", "count": 3, "stored": "8-bit, group size 32", "held": False, "error": 0.004}
    report = {"exact": 0, "converted": 3, "mean_error": 0.004, "worst_error": 0.004, "worst_tensor": "a.weight"}
    quantization = {"mode": "auto", "group_size": 32, **report, "matrices": [group], "errors": {"a.weight": 0.004}}
    record = {"source": "x.gguf", "format": "gguf", "imported_at": 7, "sha256": "ab", "quantization": quantization}
    (tmp_path / "osaurus.json").write_text(json.dumps(record))

    imported = metadata.read_provenance(build_record(tmp_path)).imported

    assert (imported.source, imported.format, imported.imported_at, imported.quantize) == ("x.gguf", "gguf", 7, "auto")
    assert msgspec.to_builtins(imported.quantization) == report | {"matrices": [group]}


@pytest.mark.parametrize("change", [{"format": "quantized"}, {"source": 1}, {"quantization": {"exact": "no"}}])
def test_invalid_import_records_are_ignored(tmp_path, change):
    record = {"source": "x.gguf", "format": "gguf", "imported_at": 7} | change
    (tmp_path / "osaurus.json").write_text(json.dumps(record))
    assert metadata.read_provenance(build_record(tmp_path)).imported is None
