"""Facts about a model from its JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osaurusd.models.record import GenerationDefaults

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_context_length",  # OpenELM
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_positions",
    "n_ctx",
)

# A tokenizer_config.json with all the tokens that a model adds has a few MB.
_MAX_JSON_BYTES = 64 * 1024 * 1024

# No vocabulary is larger; what claims to be is no number of tokens.
_MOST_TOKENS = 2**31 - 1


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object; the message says what it is instead.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__} where an object belongs")
    return value


def architecture(config: Mapping[str, Any]) -> str | None:
    """What mlx_lm goes by to choose a model's code."""
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else None


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that prompt and answer may have together, if the config says."""
    for scope in (config, config.get("text_config")):
        if not isinstance(scope, dict):
            continue
        for key in _CONTEXT_KEYS:
            value = scope.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def quantization(config: Mapping[str, Any]) -> str | None:
    """Such as `4-bit`, `mxfp4`; None for full precision."""
    scheme = config.get("quantization") or config.get("quantization_config")
    if not isinstance(scheme, dict):
        return None
    mode = scheme.get("mode", "affine")
    if mode != "affine":
        return str(mode)
    if bits := scheme.get("bits"):
        return f"{bits}-bit"
    return str(scheme.get("quant_method", "quantized"))


def generation_defaults(folder: Path) -> GenerationDefaults:
    """What `generation_config.json` says about sampling; a file that is absent or broken says nothing."""
    try:
        config = read_object(folder / "generation_config.json")
    except (OSError, ValueError):
        return GenerationDefaults()
    greedy = config.get("do_sample") is False
    top_k = _number(config.get("top_k"), 0, _MOST_TOKENS)
    return GenerationDefaults(
        temperature=0.0 if greedy else _number(config.get("temperature"), 0, 2),
        top_p=_number(config.get("top_p"), 0, 1) or None,
        top_k=None if top_k is None else int(top_k),
        min_p=_number(config.get("min_p"), 0, 1),
        repetition_penalty=_number(config.get("repetition_penalty"), 0, 10) or None,
    )


def _number(value: object, low: float, high: float) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    return None


def tokenizer_needs_code(folder: Path) -> bool:
    """Whether `tokenizer_config.json` names a tokenizer class that the repo itself ships as code."""
    try:
        return names_own_tokenizer(read_object(folder / "tokenizer_config.json"))
    except (OSError, ValueError):
        return False


def names_own_tokenizer(tokenizer_config: Mapping[str, Any]) -> bool:
    """`tokenizer_needs_code` for a file's content."""
    auto_map = tokenizer_config.get("auto_map")
    # Older files have a list of the slow and the fast class in place of the object.
    return isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)
