"""Admin API types for quantizing models: how, and what became of it."""

from enum import StrEnum
from typing import Literal

import msgspec


class QuantizationMode(StrEnum):
    """MLX's quantization modes; `affine` has a scale and an offset per group, the others are floating-point formats."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    MXFP8 = "mxfp8"


class QuantizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make a quantized copy of the model `model`, optionally under `name`.

    Attributes:
        bits: for the mode `affine`; other modes fix it.
        group_size: number of weights that share a scale; null for the default of the mode, which others than `affine`
            fix.
        requantize: allow a model that is quantized already.
    """

    model: str
    mode: QuantizationMode = QuantizationMode.AFFINE
    bits: Literal[2, 3, 4, 5, 6, 8] | None = None
    group_size: Literal[32, 64, 128] | None = None
    name: str | None = None
    requantize: bool = False


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was quantized.

    Attributes:
        base: the repository or folder name of the model that it was made from.
        bits_per_weight: average, including scales and layers that are not quantized.
        mean_error: mean of the quantized tensors' relative errors.
        worst_error, worst_tensor: the largest of them.
        quantized, kept: number of layers that are quantized, and that mlx_lm keeps in full precision.
    """

    base: str
    base_commit: str | None = None
    mode: str
    bits: int
    group_size: int
    bits_per_weight: float
    mean_error: float
    worst_error: float
    worst_tensor: str
    quantized: int
    kept: int
