"""Quantizing a model by mlx_lm's rules, with one tensor in memory at a time.

mlx_lm decides which layers to quantize and builds the arrays without computing them. Its own `save_model` computes a
whole shard at once, so this module computes, measures and writes one array after the other.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config

from osaurusd.errors import QuantizationFailed
from osaurusd.imports.messages import QuantizationSettings
from osaurusd.imports.worker import tensor_file
from osaurusd.imports.worker.folder import CONFIG
from osaurusd.imports.worker.tensor_file import Entry
from osaurusd.wire.files import sync_file
from osaurusd.wire.lineage import QuantizationMode
from osaurusd.worker.runners.folder import loadable

Progress = Callable[[int, int], None]
Predicate = Callable[[str, Any], bool | dict[str, Any]]

_QUANTIZATION_KEYS = ("quantization", "quantization_config")
_MODEL_OPT_CONFIG = "hf_quant_config.json"

# The dtypes to which mlx_lm's `convert` converts a model whose config names them.
_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}

_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint16: "U16",
    mx.uint8: "U8",
    mx.int64: "I64",
    mx.int32: "I32",
    mx.int16: "I16",
    mx.int8: "I8",
    mx.bool_: "BOOL",
}

_GROUP_SIZE = 32
_AFFINE_EMBEDDINGS = {
    mode: {"group_size": _GROUP_SIZE, "bits": bits, "mode": QuantizationMode.AFFINE.value}
    for mode, bits in ((QuantizationMode.MXFP4, 4), (QuantizationMode.NVFP4, 4), (QuantizationMode.MXFP8, 8))
}
"""The format of embeddings by the mode of the other layers: as many bits."""

# Elements for which the error is computed at once, in float32.
_CHUNK_ELEMENTS = 16 << 20


@dataclass
class Report:
    """What a quantization changed.

    Attributes:
        settings: mode, bits and group size of most layers.
        kept: number of layers that mlx_lm does not quantize.
        errors: for each quantized tensor |W - Q(W)| / |W|, with the Frobenius norm.
    """

    settings: dict[str, Any]
    kept: int
    bits_per_weight: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """Return the part of the model's record that describes the errors."""
        worst = max(self.errors, key=self.errors.__getitem__)
        return {
            **self.settings,
            "quantized": len(self.errors),
            "kept": self.kept,
            "bits_per_weight": round(self.bits_per_weight, 3),
            "mean_error": sum(self.errors.values()) / len(self.errors),
            "worst_error": self.errors[worst],
            "worst_tensor": worst,
        }


def quantize(
    source: Path,
    dest: Path,
    settings: QuantizationSettings,
    progress: Progress,
    note: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the quantized weights and the config of the model in `source` to the empty folder `dest`.

    Args:
        source: a model folder that mlx_lm can load.
        dest: an existing folder.
        settings: how to quantize.
        progress: called with the bytes written and the total bytes.
        note: called with what the result lacks.

    Raises:
        QuantizationFailed: the model cannot be quantized with these settings.
        OSError: a file could not be read or written.
    """
    mx.set_cache_limit(0)
    with loadable(source) as folder:
        network, config = _prepare(*_load(folder), folder, settings)
        layers = _find_layers(network)
        predicate = _find_predicate(network, settings.mode)
        network, config = quantize_model(
            network, config, settings.group_size, settings.bits, settings.mode, quant_predicate=predicate
        )
        keeps_vision = "vision_tower" in getattr(network, "model", {})
        if not keeps_vision and config.get("vision_config"):
            note("the image encoder is left out, because mlx_lm does not load it; the result accepts text only")
        save_config(config, dest / CONFIG, keep_vision_config=keeps_vision)
        sync_file(dest / CONFIG)
        chosen = {key: config["quantization"][key] for key in ("mode", "bits", "group_size")}
        return _write_model(network, layers, chosen, dest, progress)


def _write_model(
    network: Any, layers: dict[str, mx.array], settings: dict[str, Any], dest: Path, progress: Progress
) -> Report:
    """Write the weights of a network that mlx_lm has quantized but not computed.

    Args:
        layers: the original weights by layer. They are removed, so that each can be freed when it is written.
    """
    quantized = {path: module for path, module in network.named_modules() if _is_quantized(module)}
    if not quantized:
        raise QuantizationFailed("no layer has a size that is a multiple of the group size; use a smaller --group-size")
    report = Report(settings, kept=len(layers) - len(quantized))
    for path in layers.keys() - quantized.keys():
        del layers[path]
    arrays = _take_parameters(network)
    total = sum(array.nbytes for array in arrays.values())
    parameters = sum(weight.size for weight in layers.values())
    parameters += sum(array.size for name, array in arrays.items() if name.rpartition(".")[0] not in quantized)
    report.bits_per_weight = total * 8 / parameters
    if shortage := tensor_file.find_shortage(dest, total):
        raise QuantizationFailed(f"the disk is full: {shortage}")
    _write(arrays, dest, _Measurement(quantized, layers, report), progress)
    return report


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    try:
        network, config = load_model(folder, lazy=True)
    except OSError:
        raise
    except Exception as error:  # mlx_lm's models raise many kinds of errors for files that they cannot read
        raise QuantizationFailed(f"mlx_lm cannot load the model: {error}") from error
    return network, config


def _prepare(
    network: Any, config: dict[str, Any], folder: Path, settings: QuantizationSettings
) -> tuple[Any, dict[str, Any]]:
    """Return the network with weights in full precision, as `mlx_lm.convert` prepares it."""
    packed = any(_is_quantized(module) for _, module in network.named_modules())
    # mlx_lm converts weights in other formats while it loads them.
    converted = any(config.get(key) for key in _QUANTIZATION_KEYS) or (folder / _MODEL_OPT_CONFIG).exists()
    if (packed or converted) and not settings.requantize:
        raise QuantizationFailed(
            "it is quantized already, and quantizing it again adds to the error; "
            "start from the model in full precision, or pass --requantize"
        )
    if packed:
        network = dequantize_model(network)
    config = {key: value for key, value in config.items() if key not in _QUANTIZATION_KEYS}
    text_config = config.get("text_config")
    declared = config.get("torch_dtype") or (text_config.get("dtype") if isinstance(text_config, dict) else None)
    if dtype := _DTYPES.get(str(declared)):
        casts = getattr(network, "cast_predicate", lambda _: True)

        def cast(name: str, array: mx.array) -> mx.array:
            return array.astype(dtype) if casts(name) and mx.issubdtype(array.dtype, mx.floating) else array

        network.update(tree_map_with_path(cast, network.parameters()))
    return network, config


def _find_predicate(network: Any, mode: QuantizationMode) -> Predicate | None:
    """Return what chooses the layers of this network: None for mlx_lm's own choice, or that with affine embeddings.

    MLX's embeddings in other modes return BF16 whatever the type of the other floats is, so that the first layers would
    compute in BF16, or in F32 where other floats are F16. An output layer that is tied to them shares their format.
    """
    if mode is QuantizationMode.AFFINE:
        return None
    choose = getattr(network, "quant_predicate", None) or (lambda *_: True)

    def predicate(path: str, module: Any) -> bool | dict[str, Any]:
        chosen: bool | dict[str, Any] = choose(path, module)
        if chosen is not True or not isinstance(module, nn.Embedding):
            return chosen
        return dict(_AFFINE_EMBEDDINGS[mode]) if module.weight.shape[-1] % _GROUP_SIZE == 0 else False

    return predicate


def _is_quantized(module: Any) -> bool:
    return "scales" in module and hasattr(module, "bits")


def _find_layers(network: Any) -> dict[str, mx.array]:
    """Return the weights of the layers that can be quantized, by the path of the layer."""
    return {path: module.weight for path, module in network.named_modules() if hasattr(module, "to_quantized")}


def _take_parameters(network: Any) -> dict[str, mx.array]:
    """Return the parameters by name, and remove them from the network, so that each can be freed when it is written."""
    arrays: dict[str, mx.array] = dict(tree_flatten(network.parameters()))
    network.update(tree_map(lambda _: mx.array([]), network.parameters()))
    return arrays


class _Measurement:
    """Measures the error of each quantized layer when its arrays are written."""

    def __init__(self, modules: dict[str, Any], weights: dict[str, mx.array], report: Report) -> None:
        self._modules = modules
        self._weights = weights
        self._report = report

    def measure(self, name: str, arrays: dict[str, mx.array]) -> None:
        """Measure the layer of which `name` is the first array to be written; `arrays` has those not written yet."""
        path = name.rpartition(".")[0]
        weight = self._weights.pop(path, None)
        if weight is None:
            return
        module = self._modules[path]
        parts = [arrays[f"{path}.{part}"] for part in ("weight", "scales", "biases") if f"{path}.{part}" in arrays]
        mx.eval(weight, *parts)
        self._report.errors[f"{path}.weight"] = _relative_error(weight, parts, module)


def _relative_error(weight: mx.array, parts: list[mx.array], module: Any) -> float:
    """Return the norm of the difference to the dequantized weights, relative to that of the weights."""
    rows = weight.reshape(-1, weight.shape[-1])
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    step = max(1, _CHUNK_ELEMENTS // weight.shape[-1])
    squared_error = squared_norm = 0.0
    for start in range(0, rows.shape[0], step):
        packed, scales, *biases = (part[start : start + step] for part in flat)
        restored = mx.dequantize(
            packed, scales, biases[0] if biases else None, module.group_size, module.bits, module.mode
        )
        original = rows[start : start + step].astype(mx.float32)
        squared_error += float(mx.square(original - restored.astype(mx.float32)).sum())
        squared_norm += float(mx.square(original).sum())
    return math.sqrt(squared_error / squared_norm) if squared_norm else 0.0


def _write(arrays: dict[str, mx.array], dest: Path, measurement: _Measurement, progress: Progress) -> None:
    """Write the arrays, and remove each when it is written."""
    entries = [Entry(name, _NAMES[array.dtype], tuple(array.shape), array.nbytes) for name, array in arrays.items()]
    contents = ((data,) for data in _contents(entries, arrays, measurement))
    tensor_file.write_model(dest, entries, contents, progress)


def _contents(shard: list[Entry], arrays: dict[str, mx.array], measurement: _Measurement) -> Iterator[memoryview]:
    for entry in shard:
        measurement.measure(entry.name, arrays)
        array = arrays.pop(entry.name)
        # safetensors has rows in C order; other layouts are views of MLX.
        data = mx.contiguous(array).reshape(-1).view(mx.uint8) if array.size else mx.array([], dtype=mx.uint8)
        mx.eval(data)
        yield memoryview(data)  # type: ignore[arg-type]  # the stubs lack the buffer protocol
