"""Import the tokenizers of transformers without the index of its models: more than half of a worker's start-up time.

To import its classes lazily, transformers reads the source of every model that it contains, twice. mlx_lm needs only a
few classes. Must be imported before anything else that imports transformers.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGES = ("transformers", "transformers.models")
_MODULES = {
    "AutoTokenizer": "transformers.models.auto.tokenization_auto",
    "PreTrainedTokenizer": "transformers.tokenization_python",
    "PreTrainedTokenizerBase": "transformers.tokenization_utils_base",
    "PreTrainedTokenizerFast": "transformers.tokenization_utils_tokenizers",
}


class _LeanPackage(ModuleType):
    """A package that imports known classes directly, and replaces itself by the real package for anything else."""

    def __init__(self, name: str, paths: list[str]) -> None:
        super().__init__(name)
        self.__path__ = paths
        self.__version__ = importlib.metadata.version("transformers")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in _MODULES and self.__name__ == "transformers":
            return getattr(importlib.import_module(_MODULES[name]), name)
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _import_lean() -> None:
    spec = importlib.util.find_spec("transformers")
    if "transformers" in sys.modules or spec is None or not spec.submodule_search_locations:
        return
    (root,) = spec.submodule_search_locations
    sys.modules["transformers"] = _LeanPackage("transformers", [root])
    sys.modules["transformers.models"] = _LeanPackage("transformers.models", [f"{root}/models"])
    try:
        for name in _MODULES:
            getattr(sys.modules["transformers"], name)
    except (AttributeError, ImportError):  # another version of transformers
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]


_import_lean()
