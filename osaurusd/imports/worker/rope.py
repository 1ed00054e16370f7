"""Converting RoPE scaling from GGUF metadata to the `rope_scaling` that mlx_lm reads from `config.json`."""

import math

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker.gguf import Metadata

Floats = npt.NDArray[np.float64]

# The values of Llama 3.1's config.json; later models changed only the factor.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
# Writers compute the factors in float32.
_TOLERANCE = 1e-4


def linear_scaling(metadata: Metadata, prefix: str) -> dict[str, str | float] | None:
    """Return `rope_scaling` for the keys `{prefix}.rope.scaling.*`, or None without scaling.

    Raises:
        ImportFailed: the scaling type is not linear.
    """
    kind = metadata.find_text(f"{prefix}.rope.scaling.type")
    factor = metadata.find_number(f"{prefix}.rope.scaling.factor")
    if kind is None:
        # Older files use this key.
        factor = metadata.find_number(f"{prefix}.rope.scale_linear") if factor is None else factor
    elif kind not in ("none", "linear"):
        raise metadata.failure(f"RoPE scaling {kind!r} is not supported; supported: 'none', 'linear'")
    if kind == "none" or factor is None or factor in (0.0, 1.0):
        return None
    if factor < 0:
        raise metadata.failure(f"the RoPE scaling factor is {factor}")
    return {"type": "linear", "factor": factor}


def llama3_scaling(factors: Floats, base: float, metadata: Metadata) -> dict[str, str | float] | None:
    """Return the llama3 `rope_scaling` that produces the frequency factors of the tensor `rope_freqs.weight`.

    Args:
        factors: the divisor of each frequency, float64 of shape (head_dim / 2,), highest frequency first.
        base: `rope_theta`.
        metadata: names the file in an error.

    Raises:
        ImportFailed: no llama3 scaling produces these factors.
    """
    if not np.all(np.isfinite(factors)) or factors.min() <= 0:
        raise metadata.failure("tensor 'rope_freqs.weight' has a factor that is not a positive number")
    factor = float(factors.max())
    if np.allclose(factors, 1.0, rtol=_TOLERANCE):
        return None
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    default = (_LLAMA3_LOW, _LLAMA3_HIGH, float(_LLAMA3_CONTEXT))
    for low, high, context in (default, *_solve(factors, wavelengths, factor)):
        if np.allclose(_llama3_factors(wavelengths, factor, low, high, context), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 6),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": round(context),
            }
    raise metadata.failure("tensor 'rope_freqs.weight' does not match Llama 3's RoPE scaling")


def _llama3_factors(wavelengths: Floats, factor: float, low: float, high: float, context: float) -> Floats:
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    slow = np.where(wavelengths > context / low, factor, between)
    return np.where(wavelengths < context / high, 1.0, slow)


def _solve(factors: Floats, wavelengths: Floats, factor: float) -> list[tuple[float, float, float]]:
    """Derive low factor, high factor and context length from the frequencies between the two bands.

    Between the bands, 1 / factor is linear in 1 / wavelength. Only ratios matter, so the low factor is fixed to 1.
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
