"""Blocks of every ggml type, and random weights that survive them unchanged."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

# Where the blocks of types that the `gguf` package cannot write have their float16 factors.
_FACTORS = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ1_S: (0,),
    Type.IQ2_XXS: (0,),
    Type.IQ2_XS: (0,),
    Type.IQ2_S: (0,),
    Type.IQ3_XXS: (0,),
    Type.IQ3_S: (0,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
}
_WRITTEN = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0, Type.TQ2_0, Type.MXFP4, Type.BF16)

QUANTIZED = (*_WRITTEN[:-1], *_FACTORS, Type.IQ1_M, Type.NVFP4)
FLOATS = (Type.F32, Type.F16, Type.BF16)


def encode(values, kind):
    """Return bytes of a ggml type for an array of this shape (uint8; the last axis becomes bytes).

    The `gguf` package quantizes the values, if it can. Otherwise the blocks are random; their values have about the
    same size.
    """
    if kind in FLOATS or kind in _WRITTEN:
        data = gguf.quantize(np.ascontiguousarray(values, np.float32), kind).view(np.uint8)
    else:
        data = _random_blocks(values.shape, kind)
    return simplify_scales(data, kind)


def _random_blocks(shape, kind):
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(sum(shape) + kind)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // weights, size), dtype=np.uint8)
    if kind == Type.NVFP4:
        # Four float8 scales of moderate size.
        blocks[..., :4] = rng.integers(0x18, 0x28, blocks[..., :4].shape, dtype=np.uint8)
    if kind == Type.IQ1_M:
        # The high halves of its last eight bytes make up the float16 factor.
        for byte, nibble in zip(range(49, 56, 2), (0, 0, 0, 2), strict=True):
            blocks[..., byte] = blocks[..., byte] & 0x0F | nibble << 4
    for start in _FACTORS.get(kind, ()):
        blocks[..., start : start + 2] = np.frombuffer(np.float16(1.0).tobytes(), np.uint8)
    values = gguf.dequantize(blocks.reshape(-1, size), kind)
    # A power of two, so that the factors stay exact.
    factor = np.float16(2.0 ** np.round(np.log2(0.1 / values.std()))).tobytes()
    for start in _FACTORS.get(kind, ()):
        blocks[..., start : start + 2] = np.frombuffer(factor, np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def simplify_scales(data, kind):
    """Clear all but the first bits of the float16 factors, so that products with them fit into a BF16."""
    factors = {Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,)}
    factors |= {Type.TQ1_0: (52,), Type.TQ2_0: (64,)}
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = data.reshape(-1, size).copy()
    for start in factors.get(kind, ()):
        blocks[:, start] = 0
    return blocks.reshape(data.shape)


def decode(data, kind, shape):
    """Return the float32 values of bytes, by the `gguf` package."""
    return gguf.dequantize(data.reshape(-1, data.shape[-1]), kind).reshape(shape)
