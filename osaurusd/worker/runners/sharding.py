"""Loading one rank's part of a model."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_model

from osaurusd.errors import LoadFailed
from osaurusd.rpc import messages
from osaurusd.rpc.messages import RankSpec
from osaurusd.wire.errors import as_json
from osaurusd.worker.engine.device import Device
from osaurusd.worker.parallel.group import RankGroup
from osaurusd.worker.runners.folder import loadable
from osaurusd.worker.runners.loading import (
    Model,
    apply_limits,
    convert_to_float32,
    dtype_name,
    needs_float32,
    read_weights,
    with_tokenizer,
)

_INDEX = "model.safetensors.index.json"

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

# `shard` copies the keys and values of these models if there are fewer of their heads than ranks.
_REPEATS_KV_HEADS = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")


@dataclass
class ModelPart:
    """A model that can be split, of which nothing but the headers of its files has been read.

    Attributes:
        model: the whole model; only rank 0 has a tokenizer.
    """

    model: Model
    frame: messages.Load
    spec: RankSpec
    device: Device
    _config: dict[str, Any]

    @classmethod
    def open(cls, frame: messages.Load, spec: RankSpec, device: Device) -> "ModelPart":
        """Check that this rank's part of a model can be loaded. Runs on the MLX thread.

        Raises:
            LoadFailed: the model cannot be split like this, or files are missing.
            OSError, ValueError, RuntimeError and whatever else mlx_lm raises for files it cannot read.
        """
        if frame.task != "generate" or frame.vision:
            raise LoadFailed("only models that generate text, and accept no images, can run on several hosts")
        apply_limits(frame)
        with loadable(Path(frame.path)) as folder:
            weights = _weight_files(folder)
            present = {name for name in weights.values() if (folder / name).is_file()}
            # Without an index, mlx_lm finds out what is missing.
            network, config = load_model(folder, lazy=True, strict=present.issuperset(weights.values()))
            _check_split(network, config, spec)
            _check_files(weights, present, spec, len(network.layers))
            if spec.rank == 0:
                model = with_tokenizer(folder, network, config, frame, "")
            else:
                model = Model(network, None, [], frame.context_length, "")
        return cls(model, frame, spec, device, config)

    def load(self, group: RankGroup, on_bytes: Callable[[int], None]) -> Model:
        """Read this rank's part, together with all other ranks."""
        network = self.model.network
        share = _share(self.spec, len(network.layers))
        converts = group.agree(needs_float32(network, self.frame, self.device, share))
        if converts:
            network = convert_to_float32(network)
        if self.spec.split == "tensor":
            _shard(network, group)
        else:
            network.model.pipeline(group.mlx, list(self.spec.layers))
        read_weights(network, self.frame.wire, self.device, on_bytes)
        dtype = "float32" if converts else dtype_name(network, self._config)
        model = self.model
        return Model(network, model.tokenizer, model.end_tokens, model.context_length, dtype)


def _weight_files(folder: Path) -> dict[str, str]:
    """Return the file of each weight; empty without a valid index.

    mlx_lm does not use the index, so one that is damaged, or that fits none of the files, does no harm.
    """
    try:
        weights: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return weights if any((folder / name).is_file() for name in set(weights.values())) else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _check_split(network: Any, config: dict[str, Any], spec: RankSpec) -> None:
    kind = config.get("model_type")
    if spec.split == "pipeline":
        if not hasattr(getattr(network, "model", None), "pipeline"):
            raise LoadFailed(f'models of the type {as_json(kind)} cannot be split by layers; use `split = "tensor"`')
        _check_layers(spec, len(network.layers))
        return
    if not hasattr(network, "shard"):
        raise LoadFailed(f'models of the type {as_json(kind)} cannot be split by heads; use `split = "pipeline"`')
    text: dict[str, Any] = config.get("text_config") or config
    sizes = {"attention heads": text.get("num_attention_heads")}
    if text.get("model_type", kind) not in _REPEATS_KV_HEADS:
        sizes["key-value heads"] = text.get("num_key_value_heads")
    for name, count in sizes.items():
        if isinstance(count, int) and count % spec.size:
            raise LoadFailed(f"the model's {count} {name} cannot be divided among {spec.size} ranks")


def _check_layers(spec: RankSpec, count: int) -> None:
    if len(spec.layers) != spec.size or min(spec.layers) < 1 or sum(spec.layers) != count:
        raise LoadFailed(f"{list(spec.layers)} does not divide the model's {count} layers among {spec.size} ranks")


def _check_files(weights: dict[str, str], present: set[str], spec: RankSpec, count: int) -> None:
    """Check that all files with weights of this rank are present; mlx_lm fills in what is missing at random."""
    own = _own_layers(spec, count)
    for weight, file in weights.items():
        layer = _LAYER.search(weight)
        # Layers beyond the last one are for speculative decoding, and not loaded.
        needed = layer is None or int(layer[1]) in own
        if needed and file not in present:
            raise LoadFailed(f"the file {as_json(file)} of the model is missing")


def _own_layers(spec: RankSpec, count: int) -> range:
    if spec.split == "tensor":
        return range(count)
    start = sum(spec.layers[spec.rank + 1 :])
    return range(start, start + spec.layers[spec.rank])


def _share(spec: RankSpec, count: int) -> float:
    """Return the part of the weights that a rank has."""
    return 1 / spec.size if spec.split == "tensor" else spec.layers[spec.rank] / count


def _shard(network: Any, group: RankGroup) -> None:
    try:
        network.shard(group.mlx)
    except (AssertionError, ValueError) as error:
        raise LoadFailed(f"the model's weights cannot be divided among {group.size} ranks: {error}") from error
