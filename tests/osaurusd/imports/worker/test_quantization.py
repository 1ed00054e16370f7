"""Formats of stored matrices: blocks that MLX holds, requantization, and the errors that are reported."""

import json

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import load_model

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import importer, quantization
from osaurusd.imports.worker.quantization import Scheme
from osaurusd.wire.quantization import ImportQuantization

from . import blocks
from .k_quants import K_QUANTS, quantize_k
from .networks import CASES, Network

ROWS, COLUMNS = 16, 512


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32) * 0.05


def restore(quantized, scheme):
    """Return what MLX reads, in float32."""
    weight, scales = mx.array(quantized.weight), mx.array(quantized.scales)
    if scheme.mode == "mxfp4":
        restored = mx.dequantize(weight, scales, group_size=32, bits=4, mode="mxfp4").astype(mx.float32)
    else:
        biases = mx.array(quantized.biases).astype(mx.float32)
        scales = scales.astype(mx.float32)
        restored = mx.dequantize(weight, scales, biases, group_size=scheme.group_size, bits=scheme.bits)
    return np.array(restored)


def relative(actual, expected):
    return np.sqrt(np.square(actual - expected).sum() / np.square(expected).sum())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"])
def test_blocks_that_mlx_can_hold_keep_their_values(values, kind):
    data = gguf.quantize(values, Type[kind])
    for scheme in {quantization.held_scheme(kind), quantization.held_scheme(kind, embedding=True)}:
        quantized = quantization.convert_blocks(data, kind, scheme, "F16")

        assert np.array_equal(restore(quantized, scheme), gguf.dequantize(data, Type[kind]))
        assert quantized.error == 0


def test_rounding_of_small_scales_is_measured(values):
    """The exponents of MXFP4 have a greater range than F16."""
    data = gguf.quantize(values * 2.0**-20, Type.MXFP4)
    scheme = quantization.held_scheme("MXFP4", embedding=True)

    quantized = quantization.convert_blocks(data, "MXFP4", scheme, "F16")

    error = relative(restore(quantized, scheme), gguf.dequantize(data, Type.MXFP4))
    assert error > 0.01
    assert np.sqrt(quantized.error / quantized.signal) == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q5_K], ids=lambda kind: kind.name)
def test_k_quants_keep_their_levels_and_round_their_scales(values, kind):
    data = quantize_k(values, kind)
    scheme = quantization.held_scheme(kind.name)

    quantized = quantization.convert_blocks(data, kind.name, scheme, "F16")

    restored = restore(quantized, scheme)
    error = relative(restored, gguf.dequantize(data, kind))
    assert error < 1e-3
    # Measured with a sample of the blocks.
    assert np.sqrt(quantized.error / quantized.signal) == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_requantization_reports_the_error_that_mlx_sees(values, bits, group_size):
    scheme = Scheme(bits, group_size)

    quantized = quantization.requantize(values, scheme, "F16")

    error = relative(restore(quantized, scheme), values)
    assert np.sqrt(quantized.error / quantized.signal) == pytest.approx(error, rel=1e-3)
    weight, scales, biases = mx.quantize(mx.array(values), group_size=group_size, bits=bits)
    assert error <= relative(np.array(mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits)), values)


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_automatic_quantization_adds_less_error_than_the_type_has(values, kind):
    data = quantize_k(values, kind)
    own = gguf.dequantize(data, kind)
    scheme = quantization.automatic_scheme(kind.name)
    if held := quantization.held_scheme(kind.name):
        quantized = quantization.convert_blocks(data, kind.name, held, "F16")
        assert held == scheme
    else:
        quantized = quantization.requantize(own, scheme, "F16")

    assert relative(restore(quantized, scheme), own) < relative(own, values) / 2


@pytest.mark.parametrize("float_type", ["F32", "F16", "BF16"])
def test_constant_and_empty_groups_are_exact(float_type):
    values = np.repeat(np.array([[0.0], [0.5], [-3.0]], np.float32), 64, axis=1)

    quantized = quantization.requantize(values, Scheme(4), float_type)

    assert quantized.error == 0


def test_bf16_is_rounded_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 1e-40, 3e38], np.float32)

    stored = quantization.from_float(quantization.to_float(values, "BF16"), "BF16")

    assert np.array_equal(stored, np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32)))


@pytest.mark.parametrize("float_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(float_type, number):
    with pytest.raises(ValueError, match="not finite"):
        quantization.to_float(np.array([0, number], np.float32), float_type)


# Whole models


def import_network(network, tmp_path, mode=ImportQuantization.AUTO, group_size=32):
    dest = tmp_path / f"{mode}-{group_size}"
    dest.mkdir()
    path = network.write(tmp_path / "x.gguf")
    report = importer.import_model(path, dest, lambda *_: None, importer.Options(mode, group_size))
    return dest, report


@pytest.mark.parametrize(("mode", "group_size"), [("4", 64), ("5", 32), ("6", 128), ("8", 32)])
def test_requested_bits_apply_to_all_matrices(tmp_path, mode, group_size):
    folder, report = import_network(Network(CASES[0], Type.F16), tmp_path, ImportQuantization(mode), group_size)

    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"bits": int(mode), "group_size": group_size, "mode": "affine"}
    assert report.exact == 0
    assert 0 < report.mean_error <= report.worst_error < {"4": 0.15, "5": 0.08, "6": 0.04, "8": 0.01}[mode]


def test_matrices_in_the_requested_format_are_kept(tmp_path):
    _, report = import_network(Network(CASES[0], Type.Q4_0), tmp_path, ImportQuantization.BITS_4)

    assert report.exact > 0
    assert report.converted == 0


def test_errors_are_recorded_for_each_tensor(tmp_path):
    network = Network(CASES[0], Type.Q6_K)
    folder, report = import_network(network, tmp_path)

    record = json.loads((folder / "osaurus.json").read_text())["quantization"]
    matrices = {name for name, (_, kind) in network.tensors.items() if kind == Type.Q6_K}
    assert record["errors"].keys() == matrices
    assert record["worst_error"] == max(record["errors"].values()) == record["errors"][record["worst_tensor"]]
    assert (record["mode"], record["converted"]) == ("auto", report.converted)
    model, _ = load_model(folder)
    weights = dict(model.named_modules())
    name = "model.layers.0.mlp.up_proj"
    module = weights[name]
    scales, biases = module.scales.astype(mx.float32), module.biases.astype(mx.float32)
    restored = mx.dequantize(module.weight, scales, biases, group_size=module.group_size, bits=module.bits)
    data, kind = network.tensors["blk.0.ffn_up.weight"]
    expected = blocks.decode(data, kind, restored.shape)
    assert record["errors"]["blk.0.ffn_up.weight"] == pytest.approx(relative(np.array(restored), expected), rel=1e-3)


def test_floats_are_stored_on_request(tmp_path):
    folder, report = import_network(Network(CASES[0], Type.Q4_K), tmp_path, ImportQuantization.NONE)

    (matrices,) = report.matrices
    assert ("Q4_K", "F16", None) == (matrices.type, matrices.stored, matrices.error)
    assert "quantization" not in json.loads((folder / "config.json").read_text())


def test_a_folder_cannot_be_quantized_by_an_import(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(ImportFailed, match="only GGUF files can be quantized during an import"):
        importer.import_model(source, tmp_path, lambda *_: None, importer.Options(ImportQuantization.BITS_4))
