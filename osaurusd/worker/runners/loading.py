"""Loading language models within their memory limits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, get_total_parameters, load_model, load_tokenizer

from osaurusd.rpc import messages
from osaurusd.rpc.messages import WireSetting
from osaurusd.worker.engine.device import Device
from osaurusd.worker.runners.folder import loadable

FLOAT32_BYTES = 4

# Weights above this share of the working set are wired.
_WIRED_FRACTION = 0.6

_NARROW_DTYPES = (mx.float16, mx.bfloat16)

# For this model type, transformers loads the plain tokenizer.json class and runs no code of the model's repository.
_PLAIN_TOKENIZER_TYPE = "glm4"

_SAMPLE_TEXT = "A sample, 1 \N{SNOWMAN}."

# Files from which that class builds a complete tokenizer.
_PLAIN_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")


@dataclass(frozen=True)
class Model:
    """A loaded model. `dtype` is the precision in which its weights are held."""

    network: Any
    tokenizer: Any
    end_tokens: list[int]
    context_length: int | None
    dtype: str


def load_model_folder(
    frame: messages.Load,
    on_bytes: Callable[[int], None] = lambda _: None,
    device: Device | None = None,
    **options: Any,
) -> Model:
    """Load a model within its limits. Runs on the MLX thread.

    Args:
        frame: the model's folder and its limits.
        on_bytes: called with the size of each array of weights once it is in memory.
        device: the device that MLX uses; by default, its default device.
        options: for mlx_lm's `load_model`.

    Raises:
        OSError, ValueError, RuntimeError and whatever else mlx_lm raises for files it cannot read.
    """
    device = device or Device.default()
    apply_limits(frame)
    with loadable(Path(frame.path)) as folder:
        return _load(folder, frame, device, on_bytes, **options)


def _load(path: Path, frame: messages.Load, device: Device, on_bytes: Callable[[int], None], **options: Any) -> Model:
    network, config, dtype = load_network(path, frame, device, on_bytes, **options)
    return with_tokenizer(path, network, config, frame, dtype)


def with_tokenizer(path: Path, network: Any, config: dict[str, Any], frame: messages.Load, dtype: str) -> Model:
    """Load the tokenizer that belongs to a network.

    Raises:
        ValueError: the tokenizer cannot be loaded.
    """
    try:
        tokenizer = _load_tokenizer(path, config.get("eos_token_id"))
    except Exception as error:  # transformers raises many kinds of errors for damaged files
        raise ValueError(f"the tokenizer cannot be loaded; its files may be damaged: {_describe(error)}") from error
    return Model(
        network=network,
        tokenizer=tokenizer,
        end_tokens=sorted(tokenizer.eos_token_ids),
        context_length=frame.context_length,
        dtype=dtype,
    )


def load_network(
    path: Path, frame: messages.Load, device: Device, on_bytes: Callable[[int], None], **options: Any
) -> tuple[Any, dict[str, Any], str]:
    """Load the weights of a model; return its network, its config and the type in which the weights are held.

    Args:
        path: the folder.
        frame: whether to convert the weights, and the memory limit.
        device: the device that MLX uses.
        on_bytes: called with the size of each array of weights once it is in memory.
        options: for mlx_lm's `load_model`.
    """
    network, config = load_model(path, lazy=True, **options)
    converts_to_float32 = needs_float32(network, frame, device)
    if converts_to_float32:
        network = convert_to_float32(network)
    read_weights(network, frame.wire, device, on_bytes)
    return network, config, "float32" if converts_to_float32 else dtype_name(network, config)


def read_weights(network: Any, wire: WireSetting, device: Device, on_bytes: Callable[[int], None]) -> None:
    """Read the weights of a network from disk, and convert them as it describes."""
    # Evaluate one array after the other, so that the model is never in memory twice while it is converted.
    for parameter in _parameters(network):
        mx.eval(parameter)
        on_bytes(parameter.nbytes)
    mx.clear_cache()
    _wire_weights(wire, device)


def apply_limits(frame: messages.Load | messages.Limits, min_cache_bytes: int = 0) -> None:
    """Set MLX's memory limits. Runs on the MLX thread.

    Args:
        frame: the limits.
        min_cache_bytes: freed buffers to keep at least.
    """
    mx.synchronize()  # MLX's limits must not change while a step is being computed
    if frame.memory_limit_bytes is not None:
        mx.set_memory_limit(frame.memory_limit_bytes)
    if frame.cache_limit_bytes is not None:
        mx.set_cache_limit(max(frame.cache_limit_bytes, min_cache_bytes))


def wired_bytes(wire: WireSetting, weights_bytes: int, device: Device) -> int | None:
    """Return how much memory macOS must not page out, or None to leave that to the system.

    Wired memory has caused kernel panics, but weights that nearly fill the GPU's working set are slow without it.
    """
    if device.kind != "metal" or device.working_set_bytes is None or wire == "never":
        return None
    if wire == "auto" and weights_bytes <= _WIRED_FRACTION * device.working_set_bytes:
        return None
    # MLX raises an error above the recommended working set.
    return min(weights_bytes, device.working_set_bytes)


def _wire_weights(wire: WireSetting, device: Device) -> None:
    """Wire the loaded weights if required. The size is never changed again."""
    nbytes = wired_bytes(wire, mx.get_active_memory(), device)
    if nbytes is not None:
        mx.synchronize()
        mx.set_wired_limit(nbytes)


def _load_tokenizer(path: Path, end_tokens: Any) -> Any:
    """Load the tokenizer; without its declared class if that needs code or a package that is not available.

    Raises:
        ValueError: the files contain no vocabulary.
        OSError, RuntimeError and whatever else transformers raises for files it cannot read.
    """
    options: dict[str, Any] = {"trust_remote_code": False}
    if not _names_code(path):
        try:
            tokenizer = _checked(load_tokenizer(path, options, eos_token_ids=end_tokens))
            # A class that does not fit the vocabulary fails only when it encodes text.
            tokenizer.encode(_SAMPLE_TEXT)
            return tokenizer
        except Exception:  # each class fails differently; raised again unless the files suffice without it
            if not any((path / name).is_file() for name in _PLAIN_TOKENIZERS):
                raise
    options["tokenizer_type"] = _PLAIN_TOKENIZER_TYPE
    return _checked(load_tokenizer(path, options, eos_token_ids=end_tokens))


def _checked(tokenizer: Any) -> Any:
    """Return the tokenizer. transformers creates one without a vocabulary if its class reads other files."""
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ValueError("the tokenizer has no vocabulary; its files are missing or belong to another tokenizer class")
    return tokenizer


def _names_code(path: Path) -> bool:
    """Whether the tokenizer's config names code that is not needed, because tokenizer.json is complete without it."""
    config = path / "tokenizer_config.json"
    return (path / "tokenizer.json").is_file() and config.is_file() and "auto_map" in json.loads(config.read_bytes())


def _describe(error: Exception) -> str:
    """Return the first line of an error. That of a KeyError is only the key."""
    lines = str(error).splitlines() or [""]
    return f"{lines[0]} is missing" if isinstance(error, KeyError) else lines[0] or type(error).__name__


def needs_float32(network: Any, frame: messages.Load, device: Device, share: float = 1.0) -> bool:
    """Whether to convert weights: on CPU, MLX is many times faster with float32 than with packed or 16-bit weights.

    Args:
        network: the whole model.
        frame: the setting and the memory limit.
        device: the device that MLX uses.
        share: the part of the weights that this process holds.
    """
    if frame.dequantize != "auto":
        return frame.dequantize == "always"
    if device.is_gpu:
        return False
    needed = get_total_parameters(network) * FLOAT32_BYTES * share
    return frame.memory_limit_bytes is None or needed <= frame.memory_limit_bytes


def convert_to_float32(network: Any) -> Any:
    """Describe the conversion of all weights; `read_weights` computes it."""
    # Scales first: dequantizing yields their precision.
    network.set_dtype(mx.float32, lambda dtype: dtype in _NARROW_DTYPES)
    return dequantize_model(network)


def dtype_name(network: Any, config: dict[str, Any]) -> str:
    """Return the type in which the weights are held."""
    if quantization := config.get("quantization"):
        return f"{quantization['bits']}-bit"
    return "/".join(sorted({str(parameter.dtype).removeprefix("mlx.core.") for parameter in _parameters(network)}))


def _parameters(network: Any) -> list[mx.array]:
    flat: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore[assignment]
    return [parameter for _, parameter in flat]
