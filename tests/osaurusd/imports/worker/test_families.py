"""Imported networks of every family and quantization compute what mlx_lm computes with the dequantized weights."""

import itertools

import mlx.core as mx
import pytest
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import load_model

from osaurusd.imports.worker import importer, quantization
from osaurusd.wire.quantization import ImportQuantization

from . import blocks
from .networks import CASES, Network

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
    check(Network(LLAMA, kind), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("case", "kind"), list(itertools.product(CASES, KINDS)), ids=str)
def test_every_family_in_every_quantization_computes_the_same(tmp_path, case, kind):
    check(Network(case, kind), tmp_path)
