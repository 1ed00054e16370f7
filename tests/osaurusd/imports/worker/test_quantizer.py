"""Quantization compared with mlx_lm's own, for architectures with and without rules of their own."""

import errno
import json
import os
import shutil
from collections import namedtuple

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import convert
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config, save_model

from osaurusd.errors import QuantizationFailed
from osaurusd.imports.messages import QuantizationSettings
from osaurusd.imports.worker import quantizer, tensor_file
from osaurusd.wire.lineage import QuantizationMode
from tests.models import make_tiny

SMALL = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128}
AFFINE = QuantizationSettings(bits=4, group_size=32)

ARCHITECTURES = {
    "llama": SMALL,
    "qwen3_moe": {
        **SMALL,
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "head_dim": 32,
        "rope_theta": 10000.0,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "gemma2": {**SMALL, "model_type": "gemma2", "head_dim": 32, "query_pre_attn_scalar": 32},
}


@pytest.fixture
def ignore():
    return lambda _done, _total: None


@pytest.fixture
def make(tmp_path, tiny_tokenizer):
    def make(name="llama", **config):
        return make_tiny(tmp_path / "source", tiny_tokenizer, **{**ARCHITECTURES[name], **config})

    return make


def weights(folder):
    files = sorted(folder.glob("model*.safetensors"))
    return {name: array for file in files for name, array in mx.load(str(file)).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert mx.array_equal(array, theirs[name]).item(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings",
    [
        AFFINE,
        QuantizationSettings(bits=8),
        QuantizationSettings(bits=6, group_size=32),
        QuantizationSettings(bits=5, group_size=64),
        QuantizationSettings(mode=QuantizationMode.MXFP4),
        QuantizationSettings(mode=QuantizationMode.MXFP8),
        QuantizationSettings(mode=QuantizationMode.NVFP4),
    ],
    ids=lambda settings: f"{settings.mode}-{settings.bits}-{settings.group_size}",
)
def test_weights_and_config_equal_those_of_mlx_lm(make, tmp_path, ignore, architecture, settings):
    source = make(architecture)
    network, config = load_model(source, lazy=True)
    own = getattr(network, "quant_predicate", None)

    def predicate(path, module):
        embeddings = {"group_size": 32, "bits": 8 if settings.mode is QuantizationMode.MXFP8 else 4, "mode": "affine"}
        affine = settings.mode is QuantizationMode.AFFINE or "embed" not in path
        return (own(path, module) if own else True) if affine else embeddings

    arguments = (settings.group_size, settings.bits, settings.mode.value)
    network, config = quantize_model(network, config, *arguments, quant_predicate=predicate)
    save_model(tmp_path / "theirs", network)
    save_config(config, tmp_path / "theirs" / "config.json")
    ours = tmp_path / "ours"
    ours.mkdir()
    report = quantizer.quantize(source, ours, settings, ignore).as_record()

    assert_same(weights(ours), weights(tmp_path / "theirs"))
    assert json.loads((ours / "config.json").read_text()) == json.loads((tmp_path / "theirs/config.json").read_text())
    assert 0 < report["mean_error"] <= report["worst_error"] < 0.2
    assert report["worst_tensor"] in weights(ours)


def test_quantized_model_loads_and_gives_the_logits_of_mlx_lms_convert(make, tmp_path, ignore):
    source, ours = make(torch_dtype="bfloat16"), tmp_path / "ours"
    convert(str(source), str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=32)
    ours.mkdir()
    quantizer.quantize(source, ours, AFFINE, ignore)
    tokens = mx.array([[1, 2, 3, 4]])
    assert_same(weights(ours), weights(tmp_path / "theirs"))
    networks = [load_model(folder)[0] for folder in (ours, tmp_path / "theirs")]
    logits = [network(tokens) for network in networks]

    assert mx.array_equal(*logits).item()
    assert not mx.array_equal(logits[0], load_model(source)[0](tokens)).item()


@pytest.mark.parametrize("mode", [mode for mode in QuantizationMode if mode is not QuantizationMode.AFFINE])
@pytest.mark.parametrize("tied", [True, False])
def test_models_in_floating_point_formats_compute_in_their_own_type(make, tmp_path, ignore, mode, tied):
    ours = tmp_path / "ours"
    ours.mkdir()
    source = make(torch_dtype="float16", tie_word_embeddings=tied)
    quantizer.quantize(source, ours, QuantizationSettings(mode=mode), ignore)
    network, config = load_model(ours)

    assert config["quantization"]["mode"] == mode
    assert network.model.embed_tokens.mode == "affine"
    assert network.model.layers[0].mlp.up_proj.mode == mode
    assert network.model.embed_tokens(mx.array([1])).dtype == mx.float16
    assert network(mx.array([[1, 2, 3]])).dtype == mx.float16


def test_error_is_the_relative_difference_of_each_tensor(make, tmp_path, ignore, monkeypatch):
    monkeypatch.setattr(quantizer, "_CHUNK_ELEMENTS", 200)
    source, ours = make("qwen3_moe"), tmp_path / "ours"
    ours.mkdir()
    report = quantizer.quantize(source, ours, AFFINE, ignore)
    saved, original = weights(ours), weights(source)
    for name, error in report.errors.items():
        module = name.removesuffix(".weight")
        quantization = json.loads((ours / "config.json").read_text())["quantization"]
        own = quantization.get(module, quantization)
        parts = [saved[f"{module}.{part}"] for part in ("weight", "scales", "biases")]
        restored = np.array(mx.dequantize(*parts, group_size=own["group_size"], bits=own["bits"]))
        expected = np.linalg.norm(restored - np.array(original[name])) / np.linalg.norm(np.array(original[name]))
        assert error == pytest.approx(expected, rel=1e-4)
    assert report.as_record()["quantized"] == len(report.errors) > 10


def test_missing_image_encoder_is_noted(make, tmp_path, ignore):
    ours, notes = tmp_path / "ours", []
    ours.mkdir()
    quantizer.quantize(make(vision_config={"hidden_size": 8}), ours, AFFINE, ignore, notes.append)
    assert ["image encoder" in note for note in notes] == [True]
    assert "vision_config" not in json.loads((ours / "config.json").read_text())


def test_bits_per_weight_is_the_size_of_the_file(make, tmp_path, ignore):
    source, ours = make(), tmp_path / "ours"
    ours.mkdir()
    report = quantizer.quantize(source, ours, AFFINE, ignore)
    count = sum(array.size for array in weights(source).values())
    assert report.bits_per_weight == sum(array.nbytes for array in weights(ours).values()) * 8 / count


def test_progress_ends_with_the_total(make, tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    calls = []
    quantizer.quantize(make(), ours, AFFINE, lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[0][0] == 0
    assert calls[-1] == (sum(array.nbytes for array in weights(ours).values()),) * 2


def test_large_models_are_split_into_shards(make, tmp_path, ignore, monkeypatch):
    source, ours, whole = make(), tmp_path / "ours", tmp_path / "whole"
    ours.mkdir()
    whole.mkdir()
    quantizer.quantize(source, whole, AFFINE, ignore)
    monkeypatch.setattr(tensor_file, "MAX_SHARD_BYTES", 20_000)
    quantizer.quantize(source, ours, AFFINE, ignore)

    index = json.loads((ours / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        assert name in mx.load(str(ours / file))
    assert_same(weights(ours), weights(whole))


def test_quantized_models_are_refused_unless_requested(make, tmp_path, ignore):
    source, ours = make(group_size=32), tmp_path / "ours"
    ours.mkdir()
    with pytest.raises(QuantizationFailed, match=r"quantized already.*--requantize"):
        quantizer.quantize(source, ours, QuantizationSettings(bits=8), ignore)
    assert list(ours.iterdir()) == []

    quantizer.quantize(source, ours, QuantizationSettings(bits=8, group_size=32, requantize=True), ignore)
    network, config = load_model(source)
    config = {key: value for key, value in config.items() if "quantization" not in key}
    save_model(tmp_path / "theirs", quantize_model(dequantize_model(network), config, 32, 8)[0])
    assert_same(weights(ours), weights(tmp_path / "theirs"))
    assert json.loads((ours / "config.json").read_text())["quantization"]["bits"] == 8


def test_model_whose_layers_do_not_fit_the_group_size_is_refused(make, tmp_path, ignore):
    source = make(hidden_size=48, intermediate_size=80)
    with pytest.raises(QuantizationFailed, match="multiple of the group size"):
        quantizer.quantize(source, tmp_path, QuantizationSettings(bits=4, group_size=128), ignore)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), id="weights"),
        pytest.param(lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'), id="config"),
    ],
)
def test_model_that_mlx_lm_cannot_load_is_refused(make, tmp_path, ignore, damage):
    source = make()
    damage(source)
    with pytest.raises(QuantizationFailed, match="mlx_lm cannot load the model"):
        quantizer.quantize(source, tmp_path, AFFINE, ignore)


def test_disk_without_enough_space_is_reported_before_anything_is_written(make, tmp_path, ignore, monkeypatch):
    ours = tmp_path / "ours"
    ours.mkdir()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(QuantizationFailed, match="the disk is full"):
        quantizer.quantize(make(), ours, AFFINE, ignore)
    assert not list(ours.glob("*.safetensors"))


def test_write_errors_are_passed_on(make, tmp_path, ignore, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, ours = make(), tmp_path / "ours"
    ours.mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        quantizer.quantize(source, ours, AFFINE, ignore)


def test_memory_is_bounded_by_a_few_tensors(tmp_path, tiny_tokenizer, ignore):
    layers = 24
    source = make_tiny(
        tmp_path / "source",
        tiny_tokenizer,
        **SMALL | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers},
    )
    largest = max(array.nbytes for array in weights(source).values())
    total = sum(array.nbytes for _, array in tree_flatten(load_model(source)[0].parameters()))
    assert total > 40 * largest
    ours = tmp_path / "ours"
    ours.mkdir()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    quantizer.quantize(source, ours, AFFINE, ignore)
    assert mx.get_peak_memory() - before < 5 * largest
