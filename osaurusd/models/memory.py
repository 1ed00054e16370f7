"""How large a model is: parameters, and bytes of context. Arithmetic on headers and config; nothing is loaded."""

import math
from collections.abc import Mapping
from typing import Any

from osaurusd.models.safetensors import Tensor

# Caches are kept in the model's 16-bit precision.
CACHE_BYTES_PER_NUMBER = 2

_QUANTIZATION_TENSORS = (".scales", ".biases")
_DEFAULT_GROUP_SIZE = 64


def parameters(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Numbers that the model has, packed ones counted as what they stand for."""
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
            # One scale stands for a group of weights, however many bits each has.
            total += math.prod(scales.shape) * _group_size(quantization, layer)
        elif f".{kind}" not in _QUANTIZATION_TENSORS:
            total += math.prod(tensor.shape)
    return total


def cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Bytes of KV cache that one token of context takes over all layers, or None where the config does not tell.

    Layers with a window or a recurrent state take less than this says.
    """
    scope = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    try:
        numbers = _latent(scope) or _per_head(scope)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, AttributeError):
        return None
    return numbers * CACHE_BYTES_PER_NUMBER if numbers else None


def _group_size(quantization: Mapping[str, Any], layer: str) -> int:
    own = quantization.get(layer)
    scheme = own if isinstance(own, dict) else quantization
    size = scheme.get("group_size", _DEFAULT_GROUP_SIZE)
    return size if isinstance(size, int) else _DEFAULT_GROUP_SIZE


def _latent(config: Any) -> int | None:
    """DeepSeek's latent attention keeps one compressed vector a layer and token."""
    rank, layers = config.get("kv_lora_rank"), config.get("num_hidden_layers")
    if not rank or not layers:
        return None
    return int(layers) * (int(rank) + int(config.get("qk_rope_head_dim") or 0))


def _per_head(config: Any) -> int | None:
    """Keys and values of every KV head of every layer."""
    layers = config.get("num_hidden_layers") or config.get("num_transformer_layers") or config.get("n_layer")
    heads = config.get("num_attention_heads") or config.get("n_head")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int):
        head_dim = (config.get("hidden_size") or config.get("n_embd") or 0) // heads
    kv_heads = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if not layers or not head_dim or not kv_heads:
        return None
    # OpenELM's layers differ, so it lists them.
    all_heads = sum(kv_heads) if isinstance(kv_heads, list) else int(kv_heads) * int(layers)
    return 2 * all_heads * int(head_dim)
