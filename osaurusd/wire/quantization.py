"""How an import stores matrices, and what that changed."""

from enum import StrEnum

import msgspec


class ImportQuantization(StrEnum):
    """`auto` preserves the quality of each tensor of the source; a number means this many bits; `none` means floats."""

    AUTO = "auto"
    BITS_4 = "4"
    BITS_5 = "5"
    BITS_6 = "6"
    BITS_8 = "8"
    NONE = "none"

    @property
    def bits(self) -> int | None:
        """The number of bits for all matrices; 0 means floats, and None that each tensor decides."""
        if self is ImportQuantization.AUTO:
            return None
        return 0 if self is ImportQuantization.NONE else int(self.value)


class StoredMatrices(msgspec.Struct, frozen=True, kw_only=True):
    """Matrices of the same type in the source that are stored in the same way.

    Attributes:
        type: ggml's name of the type.
        count: the number of matrices.
        stored: the format, such as `4-bit, group size 32` or `F16`.
        held: whether the format holds the levels of the source; others are requantized.
        error: the mean of their relative RMS errors, compared with the source; 0 if all values are exact, and null for
            floats.
    """

    type: str
    count: int
    stored: str
    held: bool = False
    error: float | None = None


class QuantizationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What quantization changed.

    Attributes:
        exact: the number of quantized tensors whose values are those of the source.
        converted: the number of the other quantized tensors.
        mean_error: the mean of their relative RMS errors, compared with the source.
        worst_error: the largest of these errors.
        worst_tensor: the tensor of the source that has it.
        matrices: all matrices by type.
    """

    exact: int
    converted: int
    mean_error: float
    worst_error: float
    worst_tensor: str | None = None
    matrices: list[StoredMatrices] = []
