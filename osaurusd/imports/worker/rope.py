"""The rotary embedding's scaling, from what a GGUF file says of it to what mlx_lm reads in `config.json`."""

import math

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker.metadata import Metadata

Floats = npt.NDArray[np.float64]

# Llama 3.1's own values (Meta's `rope_scaling` in its config.json); its successors changed only the factor.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
# The file has float32 factors, and their writers computed in float32.
_TOLERANCE = 1e-4


def linear_scaling(metadata: Metadata, prefix: str) -> dict[str, str | float] | None:
    """`rope_scaling` for the keys `{prefix}.rope.scaling.*`; None where positions are not scaled.

    Raises:
        ImportFailed: the scaling is of another type than linear.
    """
    kind = metadata.find_text(f"{prefix}.rope.scaling.type")
    factor = metadata.find_number(f"{prefix}.rope.scaling.factor")
    if kind is None:
        # Files older than `rope.scaling` say it with this key.
        factor = metadata.find_number(f"{prefix}.rope.scale_linear") if factor is None else factor
    elif kind not in ("none", "linear"):
        raise metadata.failure(f"its RoPE scaling is {kind!r}; supported are 'none' and 'linear'")
    if kind == "none" or factor is None or factor in (0.0, 1.0):
        return None
    if factor < 0:
        raise metadata.failure(f"its RoPE scaling factor is {factor}")
    return {"type": "linear", "factor": factor}


def llama3_scaling(factors: Floats, base: float, metadata: Metadata) -> dict[str, str | float] | None:
    """`rope_scaling` of type llama3 that gives the frequency factors of the tensor `rope_freqs.weight`.

    Args:
        factors: by how much each frequency is divided, float64 of shape (head_dim / 2,), fastest first.
        base: `rope_theta`.
        metadata: names the file in an error.

    Raises:
        ImportFailed: no such scaling gives these factors.
    """
    if not np.all(np.isfinite(factors)) or factors.min() <= 0:
        raise metadata.failure("tensor 'rope_freqs.weight' has a factor that is not a positive number")
    factor = float(factors.max())
    if np.allclose(factors, 1.0, rtol=_TOLERANCE):
        return None
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    usual = (_LLAMA3_LOW, _LLAMA3_HIGH, float(_LLAMA3_CONTEXT))
    for low, high, context in (usual, *_solve(factors, wavelengths, factor)):
        if np.allclose(_llama3_factors(wavelengths, factor, low, high, context), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 6),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": round(context),
            }
    raise metadata.failure("tensor 'rope_freqs.weight' scales RoPE in a way that is not Llama 3's")


def _llama3_factors(wavelengths: Floats, factor: float, low: float, high: float, context: float) -> Floats:
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    slow = np.where(wavelengths > context / low, factor, between)
    return np.where(wavelengths < context / high, 1.0, slow)


def _solve(factors: Floats, wavelengths: Floats, factor: float) -> list[tuple[float, float, float]]:
    """Low and high frequency factor and context length, from the frequencies between the two bands.

    There 1 / factor is linear in 1 / wavelength. Only ratios of the three count, so that the low one may be set to 1.
    """
    between = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    if np.count_nonzero(between) < 2:
        return []
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(1 / wavelengths[between], smooth, 1)
    if not offset < 0 < slope:
        return []
    high = 1 - 1 / float(offset)
    return [(_LLAMA3_LOW, round(high, 3), float(round(float(slope) * (high - _LLAMA3_LOW))))]
