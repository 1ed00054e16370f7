"""Attention and GELU of encoders.

On a CPU, MLX computes `exp` and `erf`, and copies transposed arrays, one element at a time and on one core. NumPy
computes them with vector instructions, in about a tenth of the time, and on all cores, since it releases the GIL.
Blocks stay in the processor's cache, and results replace their inputs: the pages of large new arrays cost as much as
the computation.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from mlx import nn

_BLOCK_ELEMENTS = 65536
# Sequences share a matrix product up to this many scores.
_SCORE_ELEMENTS = 1 << 20

_HELPERS = (os.cpu_count() or 1) - 1
_POOL = ThreadPoolExecutor(_HELPERS or 1)

_THREAD = threading.local()

# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) with t = 1 / (1 + p x), for x >= 0, within 1.5e-7.
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_P = np.float32(0.3275911 / 2**0.5)
_A = tuple(np.float32(each / 2) for each in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))


def attention(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
    """Attend; all arguments and the result have the shape (batch, heads, tokens, width of a head)."""
    scale = queries.shape[-1] ** -0.5
    if not _on_cpu(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    sequences, heads, tokens, width = queries.shape
    queries, keys, values = _contiguous(queries, scale), _contiguous(keys), _contiguous(values)
    output = np.empty((sequences, tokens, heads, width), np.float32)
    step = max(_SCORE_ELEMENTS // (heads * tokens * tokens), 1)
    for begin in range(0, sequences, step):
        part = slice(begin, begin + step)
        scores = queries[part] @ keys[part].swapaxes(-1, -2)
        if mask is not None:
            scores = mx.where(mask[part] if mask.ndim == 4 else mask, scores, mx.finfo(scores.dtype).min)
        sums = _exponentials(scores)
        np.divide(np.array(scores @ values[part], copy=False), sums, out=output[part].swapaxes(1, 2))
    return mx.array(output).swapaxes(1, 2)


def gelu(inputs: mx.array) -> mx.array:
    """Compute the exact GELU. The inputs may be overwritten."""
    if not _on_cpu(inputs):
        return nn.gelu(inputs)
    output = mx.contiguous(inputs)
    elements = _elements(output)
    _compute_blocks(lambda begin, end: _gelu_block(elements[begin:end]), elements.size, 1)
    return output


@contextmanager
def on_one_core() -> Iterator[None]:
    """Compute on the calling thread only, because others compute at the same time."""
    _THREAD.alone = True
    try:
        yield
    finally:
        _THREAD.alone = False


def _contiguous(array: mx.array, factor: float | None = None) -> mx.array:
    """Return a copy without transposed axes, multiplied by the factor."""
    copy = np.ascontiguousarray(np.array(array, copy=False))
    return mx.array(copy if factor is None else copy * np.float32(factor))


def _exponentials(scores: mx.array) -> np.ndarray:
    """Replace scores by the numerators of the softmax over the last axis, and return the denominators."""
    elements = _elements(scores)
    width = scores.shape[-1]
    sums = np.empty(elements.size // width, np.float32)

    def compute(begin: int, end: int) -> None:
        rows = elements[begin:end].reshape(-1, width)
        rows -= rows.max(axis=1, keepdims=True)
        np.exp(rows, out=rows)
        rows.sum(axis=1, out=sums[begin // width : end // width])

    _compute_blocks(compute, elements.size, width)
    return sums.reshape(*scores.shape[:-1], 1)


def _gelu_block(inputs: np.ndarray) -> None:
    """Replace x by max(x, 0) - |x| (1 - erf(|x| / sqrt(2))) / 2, which equals x (1 + erf(x / sqrt(2))) / 2."""
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
    np.maximum(inputs, 0, out=inputs)
    inputs -= tail


def _on_cpu(array: mx.array) -> bool:
    return bool(mx.default_device() == mx.cpu) and array.dtype == mx.float32


def _elements(array: mx.array) -> np.ndarray:
    """Return the elements of a contiguous array that nothing else refers to, so that they can be replaced."""
    return np.array(array, copy=False).reshape(-1)


def _compute_blocks(compute: Callable[[int, int], None], size: int, width: int) -> None:
    """Call a function with the bounds of each block of whole rows, on all cores. Blocks are independent."""
    blocks = list(_blocks(size, width))
    remaining = iter(blocks)
    available = 0 if getattr(_THREAD, "alone", False) else _HELPERS

    def work() -> None:
        for begin, end in remaining:
            compute(begin, end)

    helpers = [_POOL.submit(work) for _ in range(min(available, len(blocks) - 1))]
    work()
    for helper in helpers:
        helper.result()


def _blocks(size: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of blocks of whole rows."""
    step = max(_BLOCK_ELEMENTS // width, 1) * width
    return ((begin, min(begin + step, size)) for begin in range(0, size, step))
