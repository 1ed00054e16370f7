"""Storing matrices in MLX's quantized formats: blocks of ggml that MLX can hold, and requantization of all others.

MLX's affine mode stores unsigned levels, and a scale and a bias for each group of weights: `level * scale + bias`. Its
mxfp4 mode stores 4-bit floats with an exponent for each group. Both fit ggml's blocks of 32 weights
(ggml/src/ggml-common.h): the levels are kept. Blocks with finer groups, or with levels that are not evenly spaced, are
requantized.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize

Array = npt.NDArray[Any]

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Scheme:
    """A quantized format of MLX."""

    bits: int
    group_size: int = 32
    mode: str = "affine"

    def __str__(self) -> str:
        return self.mode if self.mode != "affine" else f"{self.bits}-bit, group size {self.group_size}"

    def as_config(self) -> dict[str, int | str]:
        """Return the entry for `quantization` in `config.json`."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


class Quantized(NamedTuple):
    """Rows of a matrix as MLX stores them.

    Attributes:
        weight: packed levels, uint32 of shape (rows, columns * bits / 32).
        scales: of shape (rows, columns / group size); uint8 exponents in mxfp4 mode, else of the given float type.
        biases: like `scales`; None in mxfp4 mode.
        error: the sum of the squared differences between stored and given values.
        signal: the sum of the squared given values.
    """

    weight: Array
    scales: Array
    biases: Array | None
    error: float = 0.0
    signal: float = 0.0


class _Groups(NamedTuple):
    """The content of blocks: packed levels (blocks, bytes), and scales and biases (blocks, groups) of up to 32 bits."""

    packed: Array
    scales: Array
    biases: Array


def _field(blocks: Array, start: int, size: int) -> Array:
    """Copy bytes of each block. As one opaque item per block, they are copied fast."""
    layout = np.dtype({"names": ["field"], "formats": [f"V{size}"], "offsets": [start], "itemsize": blocks.shape[1]})
    return blocks.view(layout)["field"].copy().view(np.uint8).reshape(len(blocks), size)


def _half(blocks: Array, start: int) -> Array:
    """Return the float16 at byte `start` of each block as a column."""
    return _field(blocks, start, 2).view("<f2")


def _single(blocks: Array, start: int) -> Array:
    """Return the float16 at byte `start` of each block as a float32 column."""
    return _half(blocks, start).astype(np.float32)


_LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH_NIBBLES = ~_LOW_NIBBLES
_NIBBLE = np.uint64(4)


def _pack_nibbles(halves: Array) -> Array:
    """Reorder bytes that hold weight i in their low and weight i + width in their high half, to neighbors per byte."""
    # Converting whole arrays to bytes is several times as fast as copying every other byte.
    pairs = halves.view("<u2")
    even = pairs.astype(np.uint8).view("<u8")
    odd = (pairs >> 8).astype(np.uint8).view("<u8")
    packed = np.empty((len(halves), 2, even.shape[1]), dtype="<u8")
    first = odd << _NIBBLE
    first &= _HIGH_NIBBLES
    np.bitwise_or(first, even & _LOW_NIBBLES, out=packed[:, 0])
    even >>= _NIBBLE
    even &= _LOW_NIBBLES
    odd &= _HIGH_NIBBLES
    np.bitwise_or(odd, even, out=packed[:, 1])
    return packed.view(np.uint8).reshape(halves.shape)


def _nibbles(halves: Array) -> Array:
    """Unpack bytes whose low half is weight i, and whose high half is weight i + width."""
    return np.concatenate([halves & 0x0F, halves >> 4], axis=-1)


@functools.cache
def _products(factor: int) -> Array:
    """Return the product of every float16, by its bits."""
    with np.errstate(all="ignore"):
        return np.arange(1 << 16, dtype="<u2").view("<f2") * np.float16(factor)


def _multiply(halves: Array, factor: int) -> Array:
    """Multiply float16 values by a power of two. NumPy would convert each of them twice; looking them up is faster."""
    products = np.take(_products(factor), halves.view("<u2"))
    return products if _is_finite(products, "F16") else halves * np.float32(factor)


def _read_q4_0(blocks: Array) -> _Groups:
    scale = _half(blocks, 0)
    return _Groups(_pack_nibbles(_field(blocks, 2, 16)), scale, _multiply(scale, -8))


def _read_q4_1(blocks: Array) -> _Groups:
    return _Groups(_pack_nibbles(_field(blocks, 4, 16)), _half(blocks, 0), _half(blocks, 2))


def _pack_five_bits(halves: Array, fifth: Array) -> Array:
    levels = _nibbles(halves) | np.unpackbits(fifth, axis=-1, bitorder="little") << 4
    return pack(levels, 5)


def _read_q5_0(blocks: Array) -> _Groups:
    scale = _half(blocks, 0)
    return _Groups(_pack_five_bits(_field(blocks, 6, 16), _field(blocks, 2, 4)), scale, _multiply(scale, -16))


def _read_q5_1(blocks: Array) -> _Groups:
    packed = _pack_five_bits(_field(blocks, 8, 16), _field(blocks, 4, 4))
    return _Groups(packed, _half(blocks, 0), _half(blocks, 2))


def _read_q8_0(blocks: Array) -> _Groups:
    scale = _half(blocks, 0)
    return _Groups(_field(blocks, 2, 32) ^ 0x80, scale, _multiply(scale, -128))


def _group_scales(blocks: Array) -> tuple[Array, Array]:
    """Return scales and biases of the eight groups in blocks of Q4_K and Q5_K."""
    scales, minima = Q4_K.get_scale_min(_field(blocks, 4, 12))
    return _single(blocks, 0) * scales, _single(blocks, 2) * minima * -1


def _read_q4_k(blocks: Array) -> _Groups:
    # 32 bytes hold one group in their low halves, and the next one in their high halves.
    packed = _pack_nibbles(_field(blocks, 16, 128).reshape(-1, 32))
    return _Groups(packed.reshape(len(blocks), -1), *_group_scales(blocks))


def _read_q5_k(blocks: Array) -> _Groups:
    low = _nibbles(_field(blocks, 48, 128).reshape(-1, 4, 32)).reshape(len(blocks), 4, 2, 32)
    # Bit g of byte i is the highest bit of weight i in group g.
    high = (_field(blocks, 16, 32)[:, None] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    levels = low.reshape(len(blocks), 256) | high.reshape(len(blocks), 256) << 4
    return _Groups(pack(levels, 5), *_group_scales(blocks))


def _read_ternary(type_name: str) -> Callable[[Array], _Groups]:
    def read(blocks: Array) -> _Groups:
        scale = _single(blocks, blocks.shape[1] - 2)
        values = dequantize(blocks, GGMLQuantizationType[type_name])
        levels = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)) + 1
        # A block shares one scale; MLX's largest groups are half as long.
        scales = np.repeat(scale, 2, axis=-1)
        return _Groups(pack(levels.astype(np.uint8), 2), scales, -scales)

    return read


# Twice the values of 4-bit floats, plus 12.
_MXFP4_LEVELS = np.array([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0], np.uint8)
_MXFP4_BYTES, _NAN_EXPONENT = 17, 255


def _mxfp4_exponents(blocks: Array) -> Array:
    exponents = _field(blocks, 0, 1)
    if (exponents == _NAN_EXPONENT).any():
        raise ValueError("an exponent that is not a number")
    return exponents


def _read_mxfp4(blocks: Array) -> _Groups:
    scale = np.ldexp(np.float32(1), _mxfp4_exponents(blocks).astype(np.int32) - 128)
    return _Groups(pack(_MXFP4_LEVELS[_nibbles(_field(blocks, 1, 16))], 5), scale, scale * -12)


@dataclass(frozen=True)
class _Held:
    """A block type that MLX can hold in affine mode. `rounded`: a float16 may not hold its scales exactly."""

    scheme: Scheme
    read: Callable[[Array], _Groups]
    rounded: bool = False


_HELD = {
    "Q4_0": _Held(Scheme(4), _read_q4_0),
    "Q4_1": _Held(Scheme(4), _read_q4_1),
    "Q5_0": _Held(Scheme(5), _read_q5_0),
    "Q5_1": _Held(Scheme(5), _read_q5_1),
    "Q8_0": _Held(Scheme(8), _read_q8_0),
    "Q4_K": _Held(Scheme(4), _read_q4_k, rounded=True),
    "Q5_K": _Held(Scheme(5), _read_q5_k, rounded=True),
    "TQ1_0": _Held(Scheme(2, 128), _read_ternary("TQ1_0")),
    "TQ2_0": _Held(Scheme(2, 128), _read_ternary("TQ2_0")),
    # Only for embeddings.
    "MXFP4": _Held(Scheme(5), _read_mxfp4, rounded=True),
}
_MXFP4 = Scheme(4, 32, "mxfp4")

# Bits for block types that MLX cannot hold: requantization adds less than half of the error that the type itself has.
# For Q2_K, 4 and 5 bits pass that, but changed the perplexity of the starter model by 16% and 11%, and 6 bits by 0.1%.
_AUTO_BITS = {
    "Q2_K": 6,
    "Q3_K": 5,
    "Q6_K": 8,
    "IQ1_S": 4,
    "IQ1_M": 4,
    "IQ2_XXS": 4,
    "IQ2_XS": 4,
    "IQ2_S": 4,
    "IQ3_XXS": 5,
    "IQ3_S": 5,
    "IQ4_NL": 6,
    "IQ4_XS": 6,
    "NVFP4": 6,
}

TYPES = (*_HELD, *_AUTO_BITS)
"""The quantized types of ggml that can be converted."""

# One in this many blocks is measured if only its scales are rounded.
_SAMPLE_INTERVAL = 16


def held_scheme(type_name: str, *, embedding: bool = False) -> Scheme | None:
    """Return the format in which MLX holds blocks of a ggml type; None if it cannot.

    MLX's embeddings in mxfp4 mode return BF16 whatever the type of the other floats is, so that the first layers would
    compute in BF16, or in F32 where other floats are F16. Their blocks fit into 5 bits of affine mode as well.
    """
    if type_name == "MXFP4" and not embedding:
        return _MXFP4
    return _HELD[type_name].scheme if type_name in _HELD else None


def automatic_scheme(type_name: str, *, embedding: bool = False) -> Scheme | None:
    """Return the format that preserves the quality of a ggml type; None for floats, which are not quantized."""
    if (held := held_scheme(type_name, embedding=embedding)) is not None:
        return held
    return Scheme(_AUTO_BITS[type_name]) if type_name in _AUTO_BITS else None


def is_exact(type_name: str, scheme: Scheme, float_type: str) -> bool:
    """Whether `convert_blocks` stores exactly the values of the blocks."""
    return scheme == _MXFP4 or (float_type != "BF16" and not _HELD[type_name].rounded)


def convert_blocks(data: Array, type_name: str, scheme: Scheme, float_type: str) -> Quantized:
    """Convert rows of blocks that MLX can hold.

    Args:
        data: bytes of shape (rows, bytes per row).
        type_name: the ggml type of the blocks.
        scheme: a format that `held_scheme` returns for this type.
        float_type: F16, BF16 or F32, for scales and biases.

    Raises:
        ValueError: a scale is not finite, or exceeds the float type.
    """
    if scheme == _MXFP4:
        return _convert_mxfp4(data)
    held, ggml_type = _HELD[type_name], GGMLQuantizationType[type_name]
    blocks = data.reshape(-1, GGML_QUANT_SIZES[ggml_type][1])
    with np.errstate(all="ignore"):
        packed, scales, biases = held.read(blocks)
    stored_scales, stored_biases = to_float(scales, float_type), to_float(biases, float_type)
    error = signal = 0.0
    if not is_exact(type_name, scheme, float_type):
        sample = slice(None, None, _SAMPLE_INTERVAL)
        values = dequantize(blocks[sample], ggml_type).reshape(-1)
        parts = (scales, biases, from_float(stored_scales, float_type), from_float(stored_biases, float_type))
        error, signal = _measure_rounding(values, *(part[sample].reshape(-1, 1) for part in parts))
    weight, *scaling = (part.reshape(len(data), -1) for part in (packed, stored_scales, stored_biases))
    return Quantized(weight.view("<u4"), scaling[0], scaling[1], error, signal)


def _convert_mxfp4(data: Array) -> Quantized:
    blocks = data.reshape(-1, _MXFP4_BYTES)
    exponents = _mxfp4_exponents(blocks)
    rows = len(data)
    packed = _pack_nibbles(_field(blocks, 1, 16))
    return Quantized(packed.reshape(rows, -1).view("<u4"), exponents.reshape(rows, -1), None)


def _measure_rounding(values: Array, scales: Array, biases: Array, *stored: Array) -> tuple[float, float]:
    """Return the squared error that rounding the scales and biases of groups of values causes, and their squared sum.

    A value is `level * scale + bias`; this recovers the level.
    """
    values = values.reshape(len(scales), -1)
    levels = np.divide(values - biases, scales, out=np.zeros_like(values), where=scales != 0)
    difference = levels * stored[0] + stored[1] - values
    return float(np.vdot(difference, difference)), float(np.vdot(values, values))


def requantize(values: Array, scheme: Scheme, float_type: str) -> Quantized:
    """Quantize float32 values of shape (rows, columns) in affine mode.

    Args:
        values: their columns are a multiple of the group size.
        scheme: an affine format.
        float_type: F16, BF16 or F32, for scales and biases.

    Raises:
        ValueError: a value is not finite, or exceeds the float type.
    """
    groups = values.reshape(-1, scheme.group_size)
    highest = 2**scheme.bits - 1
    low = groups.min(axis=1, keepdims=True)
    # Levels refer to the rounded bias and scale, so that rounding these adds little error.
    biases = to_float(low, float_type)
    bias = from_float(biases, float_type)
    scales = to_float((groups.max(axis=1, keepdims=True) - bias) / highest, float_type)
    scale = from_float(scales, float_type)
    levels = groups - bias
    np.divide(levels, scale, out=levels, where=scale != 0)
    np.clip(np.rint(levels, out=levels), 0, highest, out=levels)
    packed = pack(levels.astype(np.uint8).reshape(len(values), -1), scheme.bits)
    levels *= scale
    levels += bias
    levels -= groups
    rows = len(values)
    error, signal = float(np.vdot(levels, levels)), float(np.vdot(values, values))
    return Quantized(packed, scales.reshape(rows, -1), biases.reshape(rows, -1), error, signal)


def pack(levels: Array, bits: int) -> Array:
    """Pack levels (uint8) of shape (rows, columns) into little-endian uint32, lowest bits first."""
    if bits == 8:
        return np.ascontiguousarray(levels).view("<u4")
    count = 8 // math.gcd(bits, 8)
    grouped = levels.reshape(-1, count)
    words = grouped[:, 0].astype("<u8")
    for position in range(1, count):
        words |= grouped[:, position].astype("<u8") << (position * bits)
    packed = words.view(np.uint8).reshape(-1, 8)[:, : count * bits // 8]
    return np.ascontiguousarray(packed).reshape(len(levels), -1).view("<u4")


# The exponent bits of each float type, which are all set in values that are not finite.
_EXPONENTS = {"F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}


def to_float(values: Array, float_type: str) -> Array:
    """Convert floats to F32, F16 or BF16. NumPy has no BF16, so its bits are returned as uint16.

    Raises:
        ValueError: a value is not finite, or exceeds the type.
    """
    with np.errstate(over="ignore"):
        converted = values.astype("<f4" if float_type == "F32" else "<f2") if float_type != "BF16" else _to_bf16(values)
    if not _is_finite(converted, float_type):
        raise ValueError(f"a value that is not finite or exceeds {float_type}")
    return converted


def _is_finite(values: Array, float_type: str) -> bool:
    """Whether all values of this type are finite."""
    # NumPy converts a float16 for each operation, but integers are fast.
    exponents = _EXPONENTS[float_type]
    return not (values.view(f"<u{values.itemsize}") & exponents == exponents).any()


def _to_bf16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    # Round to nearest, ties to even. NaN keeps its exponent, so that it is still found.
    return np.where(np.isnan(values), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def from_float(values: Array, float_type: str) -> Array:
    """Convert what `to_float` returns to float32."""
    if float_type == "BF16":
        return (values.astype("<u4") << 16).view("<f4")
    return values.astype("<f4", copy=False)
