"""What the placement of a model depends on, read from its config and the headers of its weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from osaurusd.errors import LoadFailed
from osaurusd.groups.families import DIVIDED_SIZES, FAMILIES, Family
from osaurusd.models import memory, metadata, safetensors
from osaurusd.models.record import ModelRecord, RunnerName, Task
from osaurusd.models.safetensors import Tensor

# As mlx_lm's `sharded_load`.
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

# The layers of these do not count, and are not loaded for text.
_OTHER_TOWERS = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal|mm_)\w*\.")

HEADS_WIDTH = "num_attention_heads * head_dim"
"""The width of the attention's output in `ModelFacts.sizes`."""


class Part(msgspec.Struct, frozen=True):
    """A part of the weights: its bytes in the files, and its number of parameters."""

    nbytes: int = 0
    parameters: int = 0


class ModelFacts(msgspec.Struct, frozen=True):
    """The shape of a model.

    Attributes:
        layers: the weights of each layer.
        shared: the weights that every rank holds: embeddings, the last norm and the head.
        sizes: the heads and widths in the config that a tensor split divides, by key.
        group_size: the number of weights that share a scale; 1 without quantization.
        cache_bytes_per_token: of all layers together.
    """

    name: str
    architecture: str
    layers: tuple[Part, ...]
    shared: Part = Part()
    sizes: Mapping[str, int] = msgspec.field(default_factory=dict)
    group_size: int = 1
    cache_bytes_per_token: int = 0
    context_length: int | None = None
    task: Task = "generate"
    runner: RunnerName = "text"


def read_model(record: ModelRecord) -> ModelFacts:
    """Read the facts of a model. Blocking; run in a thread.

    Raises:
        LoadFailed: the config or the weights cannot be read.
    """
    try:
        config = metadata.read_json_object(record.path / "config.json")
    except (OSError, ValueError) as error:
        raise LoadFailed(f'model "{record.name}": config.json cannot be read: {error}') from error
    weights = safetensors.read(record.path)
    if weights.missing:
        raise LoadFailed(f'model "{record.name}": {weights.missing}')
    return from_config(record, config, weights.tensors)


def from_config(record: ModelRecord, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelFacts:
    """Derive the facts of a model from its config and tensors."""
    section = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    # Layers beyond this number predict further tokens, and mlx_lm drops them.
    count = _positive(section.get("num_hidden_layers")) or 0
    parts: dict[int | None, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not _OTHER_TOWERS.search(name):
            parts.setdefault(layer_of(name), {})[name] = tensor
    return ModelFacts(
        name=record.name,
        architecture=record.architecture or "",
        layers=tuple(_part(parts.get(number, {}), config) for number in range(count)),
        shared=_part(parts.get(None, {}), config),
        sizes=_sizes(section, FAMILIES.get(record.architecture or "")),
        group_size=_group_size(config),
        cache_bytes_per_token=record.memory.cache_bytes_per_token or 0,
        context_length=record.context_length,
        task=record.task,
        runner=record.runner,
    )


def layer_of(tensor: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for embeddings, the last norm and the head."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def layers_of(tensors: Iterable[str]) -> tuple[int, ...] | None:
    """Return the layers of the tensors of a file; None if it also has others, so that every rank needs it."""
    layers = {layer_of(name) for name in tensors}
    numbers = sorted(layer for layer in layers if layer is not None)
    return None if None in layers or not numbers else tuple(numbers)


def _part(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    return Part(sum(tensor.nbytes for tensor in tensors.values()), memory.count_parameters(tensors, config))


def _sizes(section: Mapping[str, Any], family: Family | None) -> dict[str, int]:
    """Return what a tensor split divides, with the width of all heads together."""
    heads = _positive(section.get("num_attention_heads"))
    keys = (*(family.counts if family else ()), *DIVIDED_SIZES)
    sizes = {key: size for key in keys if (size := _positive(section.get(key)))}
    if "num_key_value_heads" in keys and heads:
        sizes.setdefault("num_key_value_heads", heads)
    width = _positive(section.get("v_head_dim")) or _positive(section.get("head_dim"))
    hidden = _positive(section.get("hidden_size"))
    if heads and (width := width or (hidden and hidden // heads)):
        sizes[HEADS_WIDTH] = heads * width
    return sizes


def _group_size(config: Mapping[str, Any]) -> int:
    scheme = config.get("quantization") or config.get("quantization_config")
    return (_positive(scheme.get("group_size")) or 1) if isinstance(scheme, dict) else 1


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
