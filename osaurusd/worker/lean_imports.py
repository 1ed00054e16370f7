"""Import the tokenizers of transformers without what they do not need: two thirds of a worker's start-up time.

To import its classes lazily, transformers reads the source of every model that it contains, twice. mlx_lm needs only a
few classes. And both import packages that most workers do not use: the client of the Hugging Face Hub, because workers
read local files, and Pillow if it is installed, which only images need. Must be imported before anything else that
imports transformers.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

_PACKAGES = ("transformers", "transformers.models")
_MODULES = {
    "AutoTokenizer": "transformers.models.auto.tokenization_auto",
    "PreTrainedTokenizer": "transformers.tokenization_python",
    "PreTrainedTokenizerBase": "transformers.tokenization_utils_base",
    "PreTrainedTokenizerFast": "transformers.tokenization_utils_tokenizers",
}
# What else imports names of the hub's client: configurations of models do so through the first.
_IMPORT_HUB = ("transformers.utils.type_validators", "mlx_lm.utils")
_HUB, _PILLOW = "huggingface_hub", "PIL"
# Packages and modules that are imported when they are used.
_DEFERRED = (_HUB, f"{_HUB}.errors", f"{_HUB}.file_download", f"{_HUB}.utils")
_DEFERRED_IF_INSTALLED = (_PILLOW, f"{_PILLOW}.Image", f"{_PILLOW}.ImageOps")
# What is called for local files, too, and the modules that define it.
_HUB_MODULES = {"is_offline_mode": f"{_HUB}.constants", "are_progress_bars_disabled": f"{_HUB}.utils.tqdm"}


class _LeanPackage(ModuleType):
    """A package that imports known classes directly, and replaces itself by the real package for anything else."""

    def __init__(self, name: str, paths: list[str]) -> None:
        super().__init__(name)
        self.__path__ = paths
        # Without one, `importlib.util.find_spec` raises an error.
        self.__spec__ = importlib.util.find_spec(name)
        self.__version__ = importlib.metadata.version("transformers")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in _MODULES and self.__name__ == "transformers":
            return getattr(importlib.import_module(_MODULES[name]), name)
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _DeferredPackage(ModuleType):
    """A package or module whose names are imported when they are used."""

    def __init__(self, name: str, root: str) -> None:
        super().__init__(name)
        self.__path__ = ["/".join([root, *name.split(".")[1:]])]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if (module := f"{self.__name__}.{name}") in (*_DEFERRED, *_DEFERRED_IF_INSTALLED):
            return importlib.import_module(module)
        if name in _HUB_MODULES:
            return getattr(importlib.import_module(_HUB_MODULES[name]), name)
        return _Deferred(name, (Exception,), {"__module__": self.__name__})


class _Deferred(type):
    """The type of a stand-in for a class, an exception, a function or a value."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._load()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}")
        return getattr(cls._load(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._load())

    def _load(cls) -> Any:
        _restore_deferred()
        return getattr(importlib.import_module(cls.__module__), cls.__name__)


def _import_lean() -> None:
    transformers, hub = _find("transformers"), _find(_HUB)
    if transformers is None or hub is None or {"transformers", _HUB, "mlx_lm"} & sys.modules.keys():
        return
    sys.modules["transformers"] = _LeanPackage("transformers", [transformers])
    sys.modules["transformers.models"] = _LeanPackage("transformers.models", [f"{transformers}/models"])
    _defer(_DEFERRED, hub)
    if (pillow := _find(_PILLOW)) is not None and _PILLOW not in sys.modules:
        _defer(_DEFERRED_IF_INSTALLED, pillow)
    try:
        importlib.import_module(f"{_HUB}.constants")
        for name in _MODULES:
            getattr(sys.modules["transformers"], name)
        for name in _IMPORT_HUB:
            importlib.import_module(name)
    except (AttributeError, ImportError):  # another version of transformers
        _forget("transformers", "mlx_lm", _HUB)
    finally:
        _restore_deferred()


def _find(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or not spec.submodule_search_locations else spec.submodule_search_locations[0]


def _defer(names: Iterable[str], root: str) -> None:
    for name in names:
        sys.modules[name] = _DeferredPackage(name, root)


def _restore_deferred() -> None:
    """Let the packages be imported when they are used. Their modules without dependencies, such as constants, stay."""
    for name in (*_DEFERRED, *_DEFERRED_IF_INSTALLED):
        if isinstance(sys.modules.get(name), _DeferredPackage):
            del sys.modules[name]


def _forget(*packages: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


_import_lean()
