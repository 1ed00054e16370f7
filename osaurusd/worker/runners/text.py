"""Loading a model: limits, weights, precision, tokenizer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, get_total_parameters, load_model, load_tokenizer

from osaurusd.rpc import messages

FLOAT32_BYTES = 4
_NARROW = (mx.float16, mx.bfloat16)

# A model type whose tokenizer is, for transformers, what tokenizer.json describes and nothing else.
_PLAIN_TOKENIZER = "glm4"


@dataclass(frozen=True)
class Model:
    """A loaded model. `dtype` is what its weights are stored in while it runs."""

    network: Any
    tokenizer: Any
    end_tokens: list[int]
    context_length: int | None
    dtype: str


def load(order: messages.Load, on_bytes: Callable[[int], None] = lambda _: None) -> Model:
    """Load the model that `order` names, within its limits. Runs on the thread that owns MLX.

    Args:
        order: which, and what it may use.
        on_bytes: told the size of each piece of weights once it is in memory.

    Raises:
        OSError, ValueError, RuntimeError and what else mlx_lm raises on files it cannot read.
    """
    apply_limits(order)
    path = Path(order.path)
    network, config = load_model(path, lazy=True)
    widened = _wants_float32(network, order)
    if widened:
        network = _widen(network)
    # One array after the other, so that no second copy of the whole model exists while it is widened.
    for parameter in _parameters(network):
        mx.eval(parameter)
        on_bytes(parameter.nbytes)
    mx.clear_cache()
    tokenizer = load_tokenizer(path, _tokenizer_options(path), eos_token_ids=config.get("eos_token_id"))
    return Model(
        network=network,
        tokenizer=tokenizer,
        end_tokens=sorted(tokenizer.eos_token_ids),
        context_length=order.context_length,
        dtype="float32" if widened else _dtype(network, config),
    )


def device_name() -> str:
    """`cpu`, or the name of the GPU that MLX computes on."""
    if mx.default_device() == mx.cpu:
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def working_set_bytes() -> int | None:
    """What the GPU recommends to use at most, for all processes together; None without one that says so."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(recommended) if recommended else None


def apply_limits(order: messages.Load | messages.Limits) -> None:
    """Have MLX keep within these limits. Runs on the thread that owns MLX."""
    if order.memory_limit_bytes is not None:
        mx.set_memory_limit(order.memory_limit_bytes)
    if order.cache_limit_bytes is not None:
        mx.set_cache_limit(order.cache_limit_bytes)
    if order.wired_limit_bytes is not None:
        # More than the GPU recommends is an error.
        mx.set_wired_limit(min(order.wired_limit_bytes, working_set_bytes() or 0))


def _tokenizer_options(path: Path) -> dict[str, Any]:
    """What to tell transformers, which refuses a tokenizer that names code even where it can do without."""
    options: dict[str, Any] = {"trust_remote_code": False}
    settings = path / "tokenizer_config.json"
    if (path / "tokenizer.json").exists() and settings.exists() and "auto_map" in json.loads(settings.read_bytes()):
        options["tokenizer_type"] = _PLAIN_TOKENIZER
    return options


def _wants_float32(network: Any, order: messages.Load) -> bool:
    """Whether to widen: MLX's CPU backend multiplies float32 matrices many times faster than packed or 16-bit ones."""
    if order.dequantize != "auto":
        return order.dequantize == "always"
    if mx.default_device() != mx.cpu:
        return False
    needed = get_total_parameters(network) * FLOAT32_BYTES
    return order.memory_limit_bytes is None or needed <= order.memory_limit_bytes


def _widen(network: Any) -> Any:
    # Scales first: dequantizing yields their precision.
    network.set_dtype(mx.float32, lambda dtype: dtype in _NARROW)
    return dequantize_model(network)


def _dtype(network: Any, config: dict[str, Any]) -> str:
    if quantization := config.get("quantization"):
        return f"{quantization['bits']}-bit"
    return "/".join(sorted({str(parameter.dtype).removeprefix("mlx.core.") for parameter in _parameters(network)}))


def _parameters(network: Any) -> list[mx.array]:
    flat: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore[assignment]
    return [parameter for _, parameter in flat]
