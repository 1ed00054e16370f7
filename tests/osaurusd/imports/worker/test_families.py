"""Imported networks of every family and quantization compute what mlx_lm computes with the dequantized weights."""

import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import load_model

from osaurusd.imports.worker import importer, quantization
from osaurusd.wire.quantization import ImportQuantization

from . import blocks
from .networks import CASES, HEADS, Network

PROMPT = mx.array([[4, 90, 30, 200, 7, 7, 91, 150, 2, 33]])
KINDS = (*blocks.QUANTIZED, *blocks.FLOATS)
LLAMA = CASES[0]


def imported_logits(network, tmp_path, mode):
    dest = tmp_path / "dest"
    dest.mkdir()
    path = network.write(tmp_path / "x.gguf")
    importer.import_model(path, dest, lambda *_: None, importer.Options(mode))
    model, _ = load_model(dest)
    model.set_dtype(mx.float32)
    return model(PROMPT)


def check(network, tmp_path):
    held = quantization.held_scheme(network.kind.name) is not None or network.kind in blocks.FLOATS
    logits = imported_logits(network, tmp_path, ImportQuantization.AUTO if held else ImportQuantization.NONE)
    network.model.set_dtype(mx.float32)
    expected = network.model(PROMPT)
    assert mx.isfinite(expected).all()
    assert mx.allclose(logits, expected, rtol=1e-4, atol=1e-4 * mx.abs(expected).max().item())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_family_computes_the_same(tmp_path, case):
    check(Network(case, Type.Q8_0), tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_quantization_computes_the_same(tmp_path, kind):
    check(Network(dataclasses.replace(LLAMA, layers=1), kind), tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3_text", "cohere", "phi3"])
def test_tied_embeddings_compute_the_same(tmp_path, model_type):
    network = Network(case_of(model_type), Type.Q8_0, tied=True)

    assert "output.weight" not in network.tensors
    check(network, tmp_path)


def case_of(model_type):
    return next(case for case in CASES if case.model_type == model_type)


def test_experts_in_separate_tensors_are_stacked(tmp_path):
    """Files of 2023 have one tensor for each expert."""
    network = Network(case_of("mixtral"), Type.Q4_0)
    for name in [name for name in network.tensors if "_exps." in name]:
        data, kind = network.tensors.pop(name)
        for number, expert in enumerate(data):
            network.tensors[name.replace("_exps.", f".{number}.")] = (expert, kind)

    check(network, tmp_path)


KEY_ROWS, VALUE_ROWS, RANK = 64, 32, 256


def test_absorbed_projections_of_deepseek_v2_are_joined(tmp_path):
    network = Network(case_of("deepseek_v2"), Type.F32)
    for layer in range(network.case.layers):
        data, kind = network.tensors.pop(f"blk.{layer}.attn_kv_b.weight")
        joint = data.view(np.float32).reshape(HEADS, KEY_ROWS + VALUE_ROWS, RANK)
        keys = np.ascontiguousarray(joint[:, :KEY_ROWS].swapaxes(1, 2))
        values = np.ascontiguousarray(joint[:, KEY_ROWS:])
        network.tensors[f"blk.{layer}.attn_k_b.weight"] = (keys, kind)
        network.tensors[f"blk.{layer}.attn_v_b.weight"] = (values, kind)

    check(network, tmp_path)


def test_the_joint_projection_of_deepseek_v3_is_absorbed(tmp_path):
    network = Network(case_of("deepseek_v3"), Type.F32)
    for layer in range(network.case.layers):
        keys, kind = network.tensors.pop(f"blk.{layer}.attn_k_b.weight")
        values, _ = network.tensors.pop(f"blk.{layer}.attn_v_b.weight")
        keys = keys.view(np.float32).reshape(HEADS, RANK, KEY_ROWS).swapaxes(1, 2)
        values = values.view(np.float32).reshape(HEADS, VALUE_ROWS, RANK)
        joint = np.concatenate([keys, values], axis=1).reshape(-1, RANK)
        network.tensors[f"blk.{layer}.attn_kv_b.weight"] = (np.ascontiguousarray(joint), kind)

    check(network, tmp_path)


def test_long_and_short_rope_factors_are_kept(tmp_path):
    case = case_of("phi3")
    factors = {
        kind: [float(kind == "long") * 0.5 + 1.0 + index / 8 for index in range(12)] for kind in ("long", "short")
    }
    config = {**case.config, "rope_scaling": {"type": "longrope", **{f"{k}_factor": v for k, v in factors.items()}}}
    config |= {"original_max_position_embeddings": 32}
    keys = {**case.keys, "rope.scaling.original_context_length": 32}
    network = Network(dataclasses.replace(case, config=config, keys=keys), Type.F32)
    for kind, values in factors.items():
        network.tensors[f"rope_factors_{kind}.weight"] = (np.array(values, np.float32), Type.F32)

    check(network, tmp_path)


def test_mxfp4_embeddings_do_not_change_the_type_of_activations(tmp_path):
    """The first layer of this family has no norm before its projections, which would compute in BF16."""
    network = Network(case_of("olmo2"), Type.MXFP4)
    check(network, tmp_path)

    model, _ = load_model(tmp_path / "dest")

    assert model(PROMPT).dtype == mx.float16


@pytest.mark.long
@pytest.mark.parametrize(("case", "kind"), list(itertools.product(CASES, KINDS)), ids=str)
def test_every_family_in_every_quantization_computes_the_same(tmp_path, case, kind):
    check(Network(case, kind), tmp_path)
