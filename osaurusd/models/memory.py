"""Parameter counts and memory estimates, computed from safetensors headers and the config without loading weights."""

import math
from collections.abc import Mapping
from typing import Any

from osaurusd.models.safetensors import Tensor

# The KV cache has 16-bit precision.
CACHE_BYTES_PER_VALUE = 2

# Arrays of a layer of an encoder that exist at the same time.
PASS_HIDDEN_ARRAYS = 8
PASS_INTERMEDIATE_ARRAYS = 3
FLOAT32_BYTES = 4

_QUANTIZATION_TENSORS = (".scales", ".biases")
_DEFAULT_GROUP_SIZE = 64


def count_parameters(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Count a model's parameters; packed quantized weights count as the weights that they encode."""
    quantization = config.get("quantization") or config.get("quantization_config")
    if not isinstance(quantization, dict):
        quantization = {}
    total = 0
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        scales = tensors.get(f"{layer}.scales")
        if scales is None:
            total += math.prod(tensor.shape)
        elif kind == "weight":
            # Each scale belongs to one group of weights, regardless of their bit width.
            total += math.prod(scales.shape) * _group_size(quantization, layer)
        elif f".{kind}" not in _QUANTIZATION_TENSORS:
            total += math.prod(tensor.shape)
    return total


def cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Return the bytes of KV cache per token over all layers, or None if the config does not determine them.

    This is an upper bound: layers with a sliding window or a recurrent state need less.
    """
    section = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    try:
        values = _latent_attention_values(section) or _attention_values(section)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, AttributeError):
        return None
    return values * CACHE_BYTES_PER_VALUE if values else None


def pass_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Estimate the memory of an encoder for each token of a forward pass; 0 if the config does not determine it."""
    hidden, intermediate = config.get("hidden_size"), config.get("intermediate_size")
    if not isinstance(hidden, int) or not isinstance(intermediate, int):
        return 0
    return (PASS_HIDDEN_ARRAYS * hidden + PASS_INTERMEDIATE_ARRAYS * intermediate) * FLOAT32_BYTES


def _group_size(quantization: Mapping[str, Any], layer: str) -> int:
    override = quantization.get(layer)
    scheme = override if isinstance(override, dict) else quantization
    size = scheme.get("group_size", _DEFAULT_GROUP_SIZE)
    return size if isinstance(size, int) else _DEFAULT_GROUP_SIZE


def _latent_attention_values(config: Any) -> int | None:
    """Return the cached values per token of multi-head latent attention (DeepSeek): one vector per layer."""
    rank, layers = config.get("kv_lora_rank"), config.get("num_hidden_layers")
    if not rank or not layers:
        return None
    return int(layers) * (int(rank) + int(config.get("qk_rope_head_dim") or 0))


def _attention_values(config: Any) -> int | None:
    """Return the cached values per token of ordinary attention: keys and values of every KV head."""
    layers = config.get("num_hidden_layers") or config.get("num_transformer_layers") or config.get("n_layer")
    heads = config.get("num_attention_heads") or config.get("n_head")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int):
        head_dim = (config.get("hidden_size") or config.get("n_embd") or 0) // heads
    kv_heads = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if not layers or not head_dim or not kv_heads:
        return None
    # OpenELM lists the heads of each layer.
    total_heads = sum(kv_heads) if isinstance(kv_heads, list) else int(kv_heads) * int(layers)
    return 2 * total_heads * int(head_dim)
