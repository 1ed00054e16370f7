"""Converting RoPE scaling from GGUF metadata to the `rope_scaling` that mlx_lm reads from `config.json`."""

import math
from collections.abc import Container
from typing import Any

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker.facts import Facts
from osaurusd.imports.worker.metadata import Metadata, shortest_float32
from osaurusd.wire.errors import as_json

Floats = npt.NDArray[np.float64]

# The values of Llama 3.1's config.json; later models changed only the factor.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
# Writers compute the factors in float32.
_TOLERANCE = 1e-4

_DEFAULT_BASE = 10000.0
_DECLARED = ("none", "linear", "yarn", "longrope")
ROPE_FREQUENCIES = "rope_freqs.weight"


def scaling(facts: Facts, supported: Container[str]) -> dict[str, Any] | None:
    """Return `rope_scaling` for the keys `rope.scaling.*` and the tensors with factors, or None without scaling.

    Args:
        facts: of the file.
        supported: the types of scaling that mlx_lm implements for the family.

    Raises:
        ImportFailed: the scaling is not supported, or inconsistent.
    """
    found = [found for found in (_declared_scaling(facts), _llama3_scaling(facts), _long_scaling(facts)) if found]
    if len(found) > 1:
        raise facts.metadata.failure("RoPE is scaled twice, in different ways")
    if found and found[0]["type"] not in supported:
        raise facts.metadata.failure(
            f"RoPE scaling {as_json(found[0]['type'])} is not supported for "
            f"the architecture {as_json(facts.architecture)}"
        )
    return found[0] if found else None


def _declared_scaling(facts: Facts) -> dict[str, Any] | None:
    kind = facts.metadata.find_text(facts.key("rope.scaling.type"))
    if kind not in (None, *_DECLARED):
        raise facts.metadata.failure(f"the RoPE scaling {as_json(kind)} is unknown; known: {', '.join(_DECLARED)}")
    factor = facts.find_number("rope.scaling.factor")
    if kind is None and factor is None:
        # Older files use this key.
        factor = facts.find_number("rope.scale_linear")
    # The factors of longrope are in tensors.
    if kind in ("none", "longrope") or factor is None or factor in (0.0, 1.0):
        return None
    if factor < 0:
        raise facts.metadata.failure(f"the RoPE scaling factor is {factor}")
    if kind == "yarn":
        return _yarn_scaling(facts, factor)
    return {"type": kind or "linear", "factor": factor}


def _yarn_scaling(facts: Facts, factor: float) -> dict[str, Any]:
    context = facts.size("context_length")
    scaling: dict[str, Any] = {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.size(
            "rope.scaling.original_context_length", max(1, round(context / factor))
        ),
    }
    for name in ("beta_fast", "beta_slow"):
        if (value := facts.find_number(f"rope.scaling.yarn_{name}")) is not None:
            scaling[name] = value
    # DeepSeek: llama.cpp stores a tenth of it, and assumes that `mscale` has the same value.
    if multiplier := facts.find_number("rope.scaling.yarn_log_multiplier"):
        scaling |= {"mscale": shortest_float32(multiplier * 10), "mscale_all_dim": shortest_float32(multiplier * 10)}
    return scaling


def _long_scaling(facts: Facts) -> dict[str, Any] | None:
    length = facts.rotary_dim // 2
    factors = {kind: facts.read_vector(f"rope_factors_{kind}.weight", length) for kind in ("long", "short")}
    lists = {
        f"{kind}_factor": [shortest_float32(value) for value in values]
        for kind, values in factors.items()
        if values is not None
    }
    if not lists:
        return None
    if len(lists) == 1:
        raise facts.metadata.failure("it has RoPE factors for either long or short texts only")
    return {"type": "longrope", **lists}


def _llama3_scaling(facts: Facts) -> dict[str, Any] | None:
    factors = facts.read_vector(ROPE_FREQUENCIES, facts.rotary_dim // 2)
    if factors is None:
        return None
    return llama3_scaling(factors, base(facts), facts.metadata)


def base(facts: Facts) -> float:
    """Return `rope_theta`."""
    number = facts.number("rope.freq_base", _DEFAULT_BASE) or _DEFAULT_BASE
    if number <= 1:
        raise facts.metadata.failure(f"the RoPE base is {number}")
    return number


def llama3_scaling(factors: Floats, base: float, metadata: Metadata) -> dict[str, Any] | None:
    """Return the llama3 `rope_scaling` that produces the frequency factors of the tensor `rope_freqs.weight`.

    Args:
        factors: the divisor of each frequency, float64 of shape (head_dim / 2,), highest frequency first.
        base: `rope_theta`.
        metadata: names the file in an error.

    Raises:
        ImportFailed: no llama3 scaling produces these factors.
    """
    factor = float(factors.max())
    if np.allclose(factors, 1.0, rtol=_TOLERANCE):
        return None
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    default = (_LLAMA3_LOW, _LLAMA3_HIGH, float(_LLAMA3_CONTEXT))
    for low, high, context in (default, *_solve(factors, wavelengths, factor)):
        if np.allclose(_llama3_factors(wavelengths, factor, low, high, context), factors, rtol=_TOLERANCE):
            return {
                "type": "llama3",
                "rope_type": "llama3",
                "factor": round(factor, 6),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": round(context),
            }
    raise metadata.failure('tensor "rope_freqs.weight" does not match the RoPE scaling of Llama 3')


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
