"""Which model types the installed mlx_lm can build, read from its files without importing it."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ARGUMENTS = re.compile(r"\bModelArgs\b")


@cache
def supported() -> frozenset[str]:
    """Every `model_type` that mlx_lm has a module for, directly or by its table of other names."""
    root = _package()
    if root is None:
        return frozenset()
    modules = {path.stem for path in (root / "models").glob("*.py") if _is_model(path)}
    renamed = _remapping((root / "utils.py").read_text(encoding="utf-8"))
    return frozenset(modules | {old for old, new in renamed.items() if new in modules})


def _is_model(path: Path) -> bool:
    """Whether a module has what mlx_lm builds a model from; caches, layers and the like lie beside them."""
    return _ARGUMENTS.search(path.read_text(encoding="utf-8")) is not None


def _package() -> Path | None:
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _remapping(source: str) -> dict[str, str]:
    """The literal dict that mlx_lm.utils calls MODEL_REMAPPING."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}
