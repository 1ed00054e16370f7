"""Facts from a model's JSON files, whatever lies in them."""

import json

import pytest

from osaurusd.models import describe
from osaurusd.models.record import GenerationDefaults


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
def test_the_context_length_is_found_where_configs_have_it(config, tokens):
    found = describe.context_length(config)
    assert found == tokens
    assert type(found) is type(tokens)


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
def test_the_quantization_has_a_short_name(config, label):
    assert describe.quantization(config) == label


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        (b'{"temperature": 0.6, "top_p": 0.9}', GenerationDefaults(temperature=0.6, top_p=0.9)),
        (b'{"temperature": 0}', GenerationDefaults(temperature=0.0)),
        (b'{"temperature": 2, "top_p": 1}', GenerationDefaults(temperature=2.0, top_p=1.0)),
        (
            b'{"do_sample": true, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}',
            GenerationDefaults(top_k=20, min_p=0.05, repetition_penalty=1.05),
        ),
        (b'{"do_sample": false, "temperature": 0.6, "top_k": 0}', GenerationDefaults(temperature=0.0, top_k=0)),
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
def test_generation_defaults_are_read_if_they_can_be(tmp_path, content, defaults):
    (tmp_path / "generation_config.json").write_bytes(content)
    assert describe.generation_defaults(tmp_path) == defaults


def test_a_model_without_generation_config_has_no_defaults(tmp_path):
    assert describe.generation_defaults(tmp_path) == GenerationDefaults()


def test_an_object_is_read_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
    assert describe.read_object(tmp_path / "config.json") == {"a": [1, "ü"]}


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("null", "NoneType"), ('"x"', "str"), ("1", "int")])
def test_what_is_no_object_is_told(tmp_path, content, kind):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^config\.json holds a {kind} where an object belongs$"):
        describe.read_object(tmp_path / "config.json")


def test_a_file_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        describe.read_object(tmp_path / "config.json")
