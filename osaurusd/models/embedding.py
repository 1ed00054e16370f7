"""How a model embeds text, read from the files of its sentence-transformers modules, and which models the runner loads.

`modules.json` lists the modules; each has a folder with its settings. Nothing is assumed that the files do not state.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from osaurusd.inference.retrieval import Activation, DenseLayer, Pipeline, Pooling
from osaurusd.models.metadata import ENCODERS, read_json, read_json_object
from osaurusd.wire import model_files
from osaurusd.wire.errors import as_json

MODULES = "modules.json"

_PROMPTS = "config_sentence_transformers.json"
_NETWORK = "sentence_bert_config.json"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_README = "README.md"

# The implementations are in `osaurusd.worker.runners.embedding`, which the daemon cannot import.
EMBEDDERS = ENCODERS | {"qwen3", "gemma3_text"}

_MATRYOSHKA = re.compile(r"matryoshka|\bMRL\b", re.IGNORECASE)
_MAX_README_BYTES = 1_000_000

_POOLING_KEYS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers concatenates the results."""


class MissingFile(ValueError):
    """A file that the modules refer to does not exist (yet)."""


def find_incompatibility(config: Mapping[str, Any], task: str) -> str | None:
    """Return why a model can never embed or rank texts; None if no reason is found."""
    model_type = config.get("model_type")
    if task == "embed":
        if model_type not in EMBEDDERS:
            return f"embedding models of the architecture `{model_type}` are not supported"
        return None
    if model_type not in ENCODERS:
        return f"sequence classifiers of the architecture `{model_type}` are not supported"
    labels = _label_count(config)
    return None if labels == 1 else f"it is a classifier with {labels} labels; a reranker has one"


def read_pipeline(folder: Path, config: Mapping[str, Any]) -> Pipeline:
    """Read how a model embeds text.

    Raises:
        MissingFile: a file that is needed is missing.
        ValueError: a file is invalid, or the model needs a module that is not supported.
        OSError: a file cannot be read.
    """
    kinds, folders = _read_modules(folder)
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"{MODULES}: the first modules must be Transformer and Pooling, not {', '.join(kinds[:2])}")
    if folders[0]:
        raise ValueError(f"{MODULES}: the network must be in the model's folder itself, not in {folders[0]}")
    pooling = _read(folder, f"{folders[1]}/{_CONFIG}")
    layers = [_read_dense(folder, each) for kind, each in zip(kinds, folders, strict=True) if kind == "Dense"]
    _check_order(kinds)
    prompts = _read(folder, _PROMPTS, optional=True)
    network = _read(folder, _NETWORK, optional=True)
    names = prompts.get("prompts")
    max_tokens = network.get("max_seq_length")
    return Pipeline(
        pooling=_poolings(pooling, folders[1]),
        pools_prompt=pooling.get("include_prompt") is not False,
        layers=layers,
        normalize="Normalize" in kinds,
        prompts={str(key): str(value) for key, value in names.items()} if isinstance(names, dict) else {},
        default_prompt=prompts.get("default_prompt_name") or None,
        max_tokens=max_tokens if isinstance(max_tokens, int) and max_tokens > 0 else None,
        lowercase=network.get("do_lower_case") is True,
        matryoshka=_is_matryoshka(folder, config),
        matryoshka_dimensions=_matryoshka_dimensions(config),
    )


def _read_modules(folder: Path) -> tuple[list[str], list[str]]:
    """Return the kinds of the modules, and their folders."""
    if not (folder / MODULES).is_file():
        raise MissingFile(f"{MODULES} is missing")
    modules = read_json(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise ValueError(f"{MODULES} must be a list of objects")
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in modules]
    folders = [str(each.get("path", "")) for each in modules]
    for each in folders[1:]:
        if not model_files.is_module_file(f"{each}/{_CONFIG}"):
            raise ValueError(f"{MODULES}: {as_json(each)} is not a folder of a module")
    return kinds, folders


def _check_order(kinds: list[str]) -> None:
    """Check the modules after pooling: dense layers, then normalization."""
    rest = kinds[2:]
    if "Normalize" in rest[:-1]:
        raise ValueError(f"{MODULES}: Normalize must be the last module")
    unsupported = [kind for kind in rest if kind not in ("Dense", "Normalize")]
    if unsupported:
        raise ValueError(f"{MODULES}: the module {unsupported[0]} is not supported")


def _read_dense(folder: Path, name: str) -> DenseLayer:
    settings = _read(folder, f"{name}/{_CONFIG}")
    activation = str(settings.get("activation_function", "")).rpartition(".")[2].lower()
    if activation not in get_args(Activation):
        raise ValueError(f"{name}/{_CONFIG}: the activation function {as_json(activation)} is not supported")
    if not (folder / name / _WEIGHTS).is_file():
        raise MissingFile(f"{name}/{_WEIGHTS} is missing")
    return DenseLayer(folder=name, activation=activation)  # type: ignore[arg-type]  # checked above


def _poolings(settings: Mapping[str, Any], name: str) -> list[Pooling]:
    mode = settings.get("pooling_mode")
    poolings: list[Any]
    if isinstance(mode, str | list):
        # Newer files name the poolings.
        poolings = [mode] if isinstance(mode, str) else mode
    else:
        poolings = [pooling for key, pooling in _POOLING_KEYS.items() if settings.get(key) is True]
    if not poolings or any(each not in get_args(Pooling) for each in poolings):
        raise ValueError(f"{name}/{_CONFIG}: the pooling is missing or not supported")
    return poolings


def _is_matryoshka(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the config or the model card says that the model was trained for shorter vectors."""
    if config.get("is_matryoshka") is True or config.get("matryoshka_dimensions"):
        return True
    try:
        with (folder / _README).open("rb") as file:
            card = file.read(_MAX_README_BYTES).decode(errors="replace")
    except OSError:
        return False
    return _MATRYOSHKA.search(card) is not None


def _matryoshka_dimensions(config: Mapping[str, Any]) -> list[int]:
    dimensions = config.get("matryoshka_dimensions")
    return [each for each in dimensions if isinstance(each, int)] if isinstance(dimensions, list) else []


def _label_count(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, dict):
        return len(labels)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2  # transformers' default


def _read(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    if not (folder / name).is_file():
        if optional:
            return {}
        raise MissingFile(f"{name} is missing")
    return read_json_object(folder / name)
