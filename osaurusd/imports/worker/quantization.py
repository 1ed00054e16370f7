"""Converting ggml's block formats to MLX's affine quantization without loss: both use groups of 32 weights.

A block (ggml/src/ggml-common.h) is a float16 scale, for Q4_1 a float16 offset, and the weights. With 4 bits, byte i
holds weight i in its low half and weight i + 16 in its high half; MLX stores neighbors next to each other in a uint32.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}

_LAYOUTS = {
    "Q4_0": np.dtype([("scale", "<f2"), ("weights", "u1", 16)]),
    "Q4_1": np.dtype([("scale", "<f2"), ("offset", "<f2"), ("weights", "u1", 16)]),
    "Q8_0": np.dtype([("scale", "<f2"), ("weights", "u1", 32)]),
}
# ggml's weights are signed, MLX's are not: weight * scale = (weight + zero) * scale - zero * scale.
_ZEROS = {"Q4_0": 8, "Q8_0": 128}


class Quantized(NamedTuple):
    """A matrix that MLX dequantizes as `weight * scales + biases`, group by group.

    Attributes:
        weight: uint32 of shape (rows, columns * bits / 32).
        scales, biases: float16 of shape (rows, columns / 32).
    """

    weight: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    biases: npt.NDArray[Any]


def convert_blocks(data: bytes, type_name: str, rows: int) -> Quantized:
    """Convert `rows` rows of complete blocks of the ggml type `type_name`, which is a key of `BITS`."""
    blocks = np.frombuffer(data, dtype=_LAYOUTS[type_name]).reshape(rows, -1)
    scales = np.ascontiguousarray(blocks["scale"])
    if type_name in _ZEROS:
        # A damaged scale may overflow; the caller checks for infinite values.
        with np.errstate(over="ignore", invalid="ignore"):
            biases = scales * np.float16(-_ZEROS[type_name])
    else:
        biases = np.ascontiguousarray(blocks["offset"])
    packed = blocks["weights"] ^ 0x80 if BITS[type_name] == 8 else _pack_nibbles(blocks["weights"])
    return Quantized(np.ascontiguousarray(packed).reshape(rows, -1).view("<u4"), scales, biases)


def _pack_nibbles(halves: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    nibbles = np.concatenate([halves & 0x0F, halves >> 4], axis=-1)
    packed: npt.NDArray[np.uint8] = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return packed
