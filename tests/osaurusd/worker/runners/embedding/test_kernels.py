"""The kernels for CPUs compute what MLX's do."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from osaurusd.worker.runners.embedding import kernels
from osaurusd.worker.runners.embedding.modernbert import window_mask

SHAPE = (5, 2, 7, 4)  # sequences, heads, tokens, width of a head

LENGTHS = mx.array([7, 3, 1, 5, 7])
PADDING = (mx.arange(7)[None] < LENGTHS[:, None])[:, None, None]


@pytest.fixture(autouse=True)
def _cpu():
    with mx.stream(mx.cpu):
        yield


@pytest.mark.parametrize("elements", [1, 200, 1 << 20])
@pytest.mark.parametrize(
    "mask", [None, PADDING, window_mask(7, 2), PADDING & window_mask(7, 2)], ids=["none", "padding", "window", "both"]
)
def test_attention_is_the_same_however_many_sequences_share_a_product(monkeypatch, elements, mask):
    monkeypatch.setattr(kernels, "_SCORE_ELEMENTS", elements)
    queries, keys, values = (mx.random.normal(SHAPE, key=mx.random.key(number)) for number in range(3))

    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.5, mask=mask)
    np.testing.assert_allclose(kernels.attention(queries, keys, values, mask), expected, atol=1e-6)


@pytest.mark.parametrize("helpers", [0, 3])
def test_gelu_is_exact_on_any_number_of_cores(monkeypatch, helpers):
    monkeypatch.setattr(kernels, "_HELPERS", helpers)
    inputs = mx.random.normal((3, 70_000), key=mx.random.key(1)) * 3
    expected = nn.gelu(inputs)
    mx.eval(expected)

    np.testing.assert_allclose(kernels.gelu(inputs), expected, atol=1e-6)
