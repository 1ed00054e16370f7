"""Which models can be loaded: those that the installed mlx_lm implements, embedding models and rerankers.

The supported architectures are read from mlx_lm's source files: importing it would load MLX into the daemon.
"""

import ast
import re
import sys
from collections.abc import Container, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from osaurusd.models import embedding, metadata, tokenizers, vision

# Every model implementation of mlx_lm defines this class; modules with caches and layers do not.
_MODEL_CLASS = re.compile(r"\bModelArgs\b")

# The top-level packages that a module imports; some implementations need a package that mlx_lm does not require.
_IMPORT = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)


def find_incompatibility(
    config: Mapping[str, Any], files: Container[str], tokenizer_config: Mapping[str, Any]
) -> str | None:
    """Return why a model can never be served, even with more files; None if no reason is found.

    Args:
        config: the model's `config.json`.
        files: the names of its files.
        tokenizer_config: its `tokenizer_config.json`, or an empty object.
    """
    model_type = metadata.architecture(config)
    if model_type is None:
        return "config.json has no `model_type`"
    task = metadata.task(config, files)
    if task != "generate":
        if reason := embedding.find_incompatibility(config, task):
            return reason
        return None if tokenizers.TOKENIZER in files else f"{tokenizers.TOKENIZER} is missing"
    if model_type not in supported_architectures() and not vision.accepts_images(config, files):
        if vision.is_vision_model(config, files):
            return f"mlx_lm does not support its text part, and {vision.find_refusal(config)}"
        return f"mlx_lm does not support the architecture `{model_type}`"
    if config.get("model_file") is not None:
        return "the model requires custom code (`model_file`), which osaurusd never runs"
    complete = any(name in files for name in tokenizers.COMPLETE_FILES)
    if not complete and metadata.tokenizer_requires_code(tokenizer_config):
        return "the tokenizer requires custom code (`auto_map`), which osaurusd never runs"
    return None


def support_of_images(architecture: str | None) -> Literal["yes", "no", "unsupported"]:
    """Return whether a vision-language model accepts images, serves text only, or cannot be served."""
    if vision.find_unsupported({"model_type": architecture}) is None:
        return "yes"
    return "no" if architecture in supported_architectures() else "unsupported"


@cache
def supported_architectures() -> frozenset[str]:
    """Return every `model_type` that the installed mlx_lm implements; empty if mlx_lm is not installed."""
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        return frozenset()
    return architectures_in(Path(spec.origin).parent)


def architectures_in(package: Path) -> frozenset[str]:
    """Return every `model_type` that the mlx_lm package in a folder implements, including remapped names."""
    modules = {path.stem for path in (package / "models").glob("*.py") if _implements_model(path)}
    remapped = _read_remapping((package / "utils.py").read_text(encoding="utf-8"))
    return frozenset(modules | {name for name, target in remapped.items() if target in modules})


def _implements_model(module: Path) -> bool:
    source = module.read_text(encoding="utf-8")
    return _MODEL_CLASS.search(source) is not None and all(_is_installed(name) for name in _IMPORT.findall(source))


@cache
def _is_installed(package: str) -> bool:
    return package in sys.stdlib_module_names or find_spec(package) is not None


def _read_remapping(source: str) -> dict[str, str]:
    """Return the dict literal that mlx_lm.utils assigns to `MODEL_REMAPPING`; empty if there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}
