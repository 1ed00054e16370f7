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


class QuantizationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What quantization changed.

    Attributes:
        exact: the number of quantized tensors whose values are those of the source.
        converted: the number of the other quantized tensors.
        mean_error: the mean of their relative RMS errors, compared with the source.
        worst_error: the largest of these errors.
        worst_tensor: the tensor of the source that has it.
    """

    exact: int
    converted: int
    mean_error: float
    worst_error: float
    worst_tensor: str | None = None
