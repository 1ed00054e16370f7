"""Which models the installed mlx_lm can load.

The supported architectures are read from mlx_lm's source files: importing it would load MLX into the daemon.
"""

import ast
import re
from collections.abc import Callable, Container, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from osaurusd.models import metadata

# Files from which transformers builds a tokenizer without code from the repository.
_STANDARD_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_OTHER_TOKENIZERS = ("tiktoken.model", "tokenizer_config.json")

# Every model implementation of mlx_lm defines this class; modules with caches and layers do not.
_MODEL_CLASS = re.compile(r"\bModelArgs\b")


def find_incompatibility(
    config: Mapping[str, Any], files: Container[str], read_tokenizer_config: Callable[[], Mapping[str, Any]]
) -> str | None:
    """Return why a model can never be served, even with more files; None if no reason is found.

    Args:
        config: the model's `config.json`.
        files: the names of its files.
        read_tokenizer_config: called only if no file is a complete tokenizer.
    """
    model_type = metadata.architecture(config)
    if model_type is None:
        return "config.json has no `model_type`"
    if model_type not in supported_architectures():
        return f"mlx_lm does not support the architecture `{model_type}`"
    if config.get("model_file") is not None:
        return "the model requires custom code (`model_file`), which osaurusd never runs"
    standard = any(name in files for name in _STANDARD_TOKENIZERS)
    if not standard and metadata.tokenizer_requires_code(read_tokenizer_config()):
        return "the tokenizer requires custom code (`auto_map`), which osaurusd never runs"
    return None


def has_tokenizer(files: Container[str]) -> bool:
    """Whether the file names include one that a tokenizer can be built from."""
    return any(name in files for name in (*_STANDARD_TOKENIZERS, *_OTHER_TOKENIZERS))


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
    return _MODEL_CLASS.search(module.read_text(encoding="utf-8")) is not None


def _read_remapping(source: str) -> dict[str, str]:
    """Return the dict literal that mlx_lm.utils assigns to `MODEL_REMAPPING`; empty if there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}
