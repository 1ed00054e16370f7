"""Vision-language models: which families accept images, and why others do not.

The implementations are those of mlx_vlm, which only a worker imports. A model whose images are not supported can still
be served as a text model if mlx_lm implements its text part.
"""

from collections.abc import Container, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

EXTRA = "osaurusd[vision]"
"""The optional dependencies for images."""

PACKAGES = ("mlx_vlm", "PIL")
"""What the extra installs, as far as a vision worker imports it."""

# Converters that keep only the text part of a model drop these files.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class Family(NamedTuple):
    """Models with the same vision tower and the same positions.

    Attributes:
        name: as users know it.
        architectures: the `model_type`s.
        low_detail: what `detail: "low"` changes; None if the family has one resize regime only.
    """

    name: str
    architectures: tuple[str, ...]
    low_detail: str | None = None


FAMILIES = (
    Family("SmolVLM", ("smolvlm",), "one tile"),
    Family("Idefics 3", ("idefics3",), "one tile"),
    Family("Gemma 3", ("gemma3",)),
    Family("Pixtral", ("pixtral",), "at most 512 pixels per side"),
    Family("Mistral Small 3", ("mistral3",), "at most 512 pixels per side"),
    Family("LLaVA 1.5", ("llava",)),
    Family("LFM2-VL", ("lfm2_vl", "lfm2-vl"), "one tile"),
    Family("Qwen2-VL", ("qwen2_vl",), "at most 262,144 pixels"),
    Family("Qwen2.5-VL", ("qwen2_5_vl",), "at most 262,144 pixels"),
    Family("Qwen3-VL", ("qwen3_vl",), "at most 262,144 pixels"),
)
"""The families whose images are supported."""

_POSITIONS = "its images need two-dimensional positions, which osaurusd does not compute yet"
_OTHER_INPUTS = "its layers need more than the embeddings of an image, which osaurusd does not support yet"

REFUSED: Mapping[str, str] = {
    "qwen3_vl_moe": _OTHER_INPUTS,
    "qwen3_5": _POSITIONS,
    "qwen3_5_moe": _POSITIONS,
    "glm4v": _POSITIONS,
    "glm4v_moe": _POSITIONS,
    "mllama": _OTHER_INPUTS,
    "gemma3n": _OTHER_INPUTS,
    "gemma4": _OTHER_INPUTS,
    "gemma4_unified": _OTHER_INPUTS,
}
"""Well-known architectures whose images are not supported, with the reason."""

_BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}


def find_family(architecture: str | None) -> Family | None:
    """Return the supported family of a `model_type`."""
    return _BY_ARCHITECTURE.get(architecture or "")


@cache
def vision_available() -> bool:
    """Whether the packages for images are installed."""
    return all(find_spec(package) is not None for package in PACKAGES)


def is_vision_model(config: Mapping[str, Any], files: Container[str]) -> bool:
    """Whether a model has a vision tower, supported or not.

    Args:
        config: the model's `config.json`.
        files: the names of its files.
    """
    return isinstance(config.get("vision_config"), dict) and any(name in files for name in _PROCESSOR_FILES)


def accepts_images(config: Mapping[str, Any], files: Container[str]) -> bool:
    """Whether a worker can load the model so that it accepts images."""
    return is_vision_model(config, files) and find_refusal(config) is None


def find_refusal(config: Mapping[str, Any]) -> str | None:
    """Return why a vision-language model does not accept images; None if it does."""
    architecture = config.get("model_type")
    if reason := find_unsupported(config):
        return reason
    if not vision_available():
        return f'images need the extra `vision`; install "{EXTRA}" and run "osaurusctl restart"'
    if not _is_implemented(str(architecture)):
        return f"the installed mlx_vlm does not implement `{architecture}`; update it"
    return None


def find_unsupported(config: Mapping[str, Any]) -> str | None:
    """Return why images of a model's architecture are not supported, whatever is installed; None if they are."""
    architecture = config.get("model_type")
    if find_family(architecture) is not None:
        return None
    reason = REFUSED.get(str(architecture), "osaurusd supports images of " + ", ".join(each.name for each in FAMILIES))
    return f"images of the architecture `{architecture}` are not supported: {reason}"


def families_table() -> list[str]:
    """Return the table of supported families for the documentation, as lines of Markdown."""
    rows = [
        f"| {family.name} | {', '.join(f'`{name}`' for name in family.architectures)} | {family.low_detail or ''} |"
        for family in FAMILIES
    ]
    return ['| family | architecture | `detail: "low"` |', "| --- | --- | --- |", *rows]


def _is_implemented(architecture: str) -> bool:
    spec = find_spec("mlx_vlm")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "models" / architecture.replace("-", "_") / "__init__.py").is_file()
