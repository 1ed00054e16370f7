"""Differences between the tensors of a GGUF file and the parameters of mlx_lm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Transform:
    """How to derive a parameter.

    Attributes:
        rows: reorders rows without changing them, so that quantized rows can be kept. It is applied to any multiple of
            `unit` rows at a time.
        values: computes the parameter from the float32 values of all its tensors. Either `rows` or this is set.
        keeps_shape: the only tensor has the shape of the parameter.
    """

    rows: Callable[[Array], Array] | None = None
    unit: int = 1
    values: Callable[[Sequence[Array]], Array] | None = None
    keeps_shape: bool = True


def split_rotary_pairs(head_rows: int) -> Transform:
    """Reorder each head's rows from interleaved rotary pairs to halves, as mlx_lm expects them.

    GGUF files of some families interleave the pairs (`permute` in llama.cpp's convert_hf_to_gguf.py).
    """

    def reorder(rows: Array) -> Array:
        pairs = rows.reshape(len(rows) // head_rows, head_rows // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    return Transform(rows=reorder, unit=head_rows)


def add(number: float) -> Transform:
    return Transform(values=lambda tensors: tensors[0] + np.float32(number))


def join_key_and_value(heads: int) -> Transform:
    """Join DeepSeek's absorbed projections of keys (heads, rank, rows) and values (heads, rows, rank) to one matrix."""

    def join(tensors: Sequence[Array]) -> Array:
        keys, values = tensors
        rank = values.shape[-1]
        keys = keys.reshape(heads, rank, -1).swapaxes(1, 2)
        return np.concatenate([keys, values.reshape(heads, -1, rank)], axis=1).reshape(-1, rank)

    return Transform(values=join, keeps_shape=False)


def absorb_keys(heads: int, key_rows: int) -> Transform:
    """Take the keys out of DeepSeek's joint projection, transposed for each head."""

    def absorb(tensors: Sequence[Array]) -> Array:
        joint = tensors[0].reshape(heads, -1, tensors[0].shape[-1])
        return np.ascontiguousarray(joint[:, :key_rows].swapaxes(1, 2))

    return Transform(values=absorb, keeps_shape=False)


def take_values(heads: int, key_rows: int) -> Transform:
    """Take the values out of DeepSeek's joint projection."""

    def take(tensors: Sequence[Array]) -> Array:
        joint = tensors[0].reshape(heads, -1, tensors[0].shape[-1])
        return np.ascontiguousarray(joint[:, key_rows:])

    return Transform(values=take, keeps_shape=False)
