"""Attention and GELU of encoders.

On a CPU, MLX computes `exp` and `erf` one element at a time. NumPy computes them with vector instructions, in about a
tenth of the time. Blocks stay in the processor's cache.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from mlx import nn

_BLOCK_ELEMENTS = 65536

# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) with t = 1 / (1 + p x), for x >= 0, within 1.5e-7.
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_P = np.float32(0.3275911 / 2**0.5)
_A = tuple(np.float32(each / 2) for each in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))


def attention(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
    """Attend; all arguments and the result have the shape (batch, heads, tokens, width of a head)."""
    scale = queries.shape[-1] ** -0.5
    if not _on_cpu(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    scores = (queries * scale) @ keys.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights, sums = _exponentials(scores)
    return (weights @ values) / sums


def gelu(inputs: mx.array) -> mx.array:
    """Compute the exact GELU."""
    if not _on_cpu(inputs):
        return nn.gelu(inputs)
    source, output = _buffers(inputs)
    for begin, end in _blocks(source.size, 1):
        _gelu_block(source[begin:end], output[begin:end])
    return mx.array(output.reshape(inputs.shape))


def _exponentials(scores: mx.array) -> tuple[mx.array, mx.array]:
    """Return the numerators and the denominators of the softmax over the last axis."""
    source, output = _buffers(scores)
    width = scores.shape[-1]
    sums = np.empty(source.size // width, np.float32)
    for begin, end in _blocks(source.size, width):
        rows, weights = (each[begin:end].reshape(-1, width) for each in (source, output))
        np.subtract(rows, rows.max(axis=1, keepdims=True), out=weights)
        np.exp(weights, out=weights)
        weights.sum(axis=1, out=sums[begin // width : end // width])
    return mx.array(output.reshape(scores.shape)), mx.array(sums.reshape(*scores.shape[:-1], 1))


def _gelu_block(inputs: np.ndarray, output: np.ndarray) -> None:
    """Compute max(x, 0) - |x| (1 - erf(|x| / sqrt(2))) / 2, which equals x (1 + erf(x / sqrt(2))) / 2."""
    size = np.abs(inputs)
    t = size * _P
    t += 1
    np.reciprocal(t, out=t)
    tail = t * _A[4]
    for coefficient in _A[3::-1]:
        tail += coefficient
        tail *= t
    np.multiply(inputs, inputs, out=t)
    t *= np.float32(-0.5)
    np.exp(t, out=t)
    tail *= t
    tail *= size
    np.maximum(inputs, 0, out=output)
    output -= tail


def _on_cpu(array: mx.array) -> bool:
    return bool(mx.default_device() == mx.cpu) and array.dtype == mx.float32


def _buffers(array: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """Return the elements of an array, and space for as many."""
    elements = np.array(mx.contiguous(array), copy=False).reshape(-1)
    return elements, np.empty_like(elements)


def _blocks(size: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of blocks of whole rows."""
    step = max(_BLOCK_ELEMENTS // width, 1) * width
    return ((begin, min(begin + step, size)) for begin in range(0, size, step))
