"""Admin API types for where models come from: another program, or a model that was quantized."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from osaurusd.wire.quantization import QuantizationReport

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128]


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
    bits: Bits | None = None
    group_size: GroupSize | None = None
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


class ImportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where an imported model comes from.

    Attributes:
        source: the name of the file or folder, or another program's name for the model.
        format: `gguf` or `folder`.
        imported_at: in seconds since the epoch.
        program: the other program, if the model was imported from one.
        sha256: of the GGUF file.
        quantize: how its matrices were to be stored, such as `auto`.
        quantization: how they are stored, and what that changed; null for a folder.
        notes: what the model lacks of the file, or has in addition, such as an image encoder or a chat template.
    """

    source: str
    format: Literal["gguf", "folder"]
    imported_at: int
    program: str | None = None
    sha256: str | None = None
    quantize: str | None = None
    quantization: QuantizationReport | None = None
    notes: list[str] = []


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What another program knows about a file that is imported from it.

    Attributes:
        program: its name, for people.
        name: its name for the model, from which the name of the imported model derives.
        sha256: the checksum that the program recorded for the file.
        stop: texts that end an output; those that are single tokens are imported.
        temperature, top_p, top_k, min_p, repetition_penalty: defaults for generation.
    """

    program: Annotated[str, msgspec.Meta(max_length=100)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    stop: list[str] = []
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
