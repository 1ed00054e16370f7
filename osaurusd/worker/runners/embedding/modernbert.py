"""The encoder ModernBERT and its sequence classifier. Parameters are named as in transformers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.base import BaseModelArgs

from osaurusd.worker.runners.embedding.bert import ACTIVATIONS, attend
from osaurusd.worker.runners.embedding.inputs import Batch

_UNUSED = re.compile(r"^(?:decoder\.|head\.)")


@dataclass
class ModelArgs(BaseModelArgs):  # type: ignore[misc]  # mlx_lm ships no types
    """The keys of config.json that the network depends on."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_activation: str = "gelu"
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    global_rope_theta: float = 160000.0
    local_rope_theta: float | None = 10000.0
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    classifier_pooling: str = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"

    def is_local(self, layer: int) -> bool:
        """Whether a layer attends only to tokens nearby."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return layer % self.global_attn_every_n_layers != 0

    def rope_theta(self, layer: int) -> float:
        """Return the base of the rotary embedding. Newer files have it in `rope_parameters`, by type of layer."""
        is_local = self.is_local(layer)
        parameters = (self.rope_parameters or {}).get("sliding_attention" if is_local else "full_attention")
        if isinstance(parameters, Mapping):
            return float(parameters["rope_theta"])
        return float(self.local_rope_theta or self.global_rope_theta) if is_local else self.global_rope_theta


def window_mask(length: int, distance: int) -> mx.array:
    """Return which tokens attend to which if they are at most `distance` apart."""
    positions = mx.arange(length)
    return mx.abs(positions[:, None] - positions[None]) <= distance


class _Embeddings(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.norm = nn.LayerNorm(args.hidden_size, args.norm_eps, bias=args.norm_bias)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.norm(self.tok_embeddings(tokens))


class _Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.Wqkv = nn.Linear(args.hidden_size, 3 * args.hidden_size, bias=args.attention_bias)
        self.Wo = nn.Linear(args.hidden_size, args.hidden_size, bias=args.attention_bias)
        self.rope = nn.RoPE(args.hidden_size // args.num_attention_heads, base=args.rope_theta(layer))
        self._heads = args.num_attention_heads

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        queries, keys, values = mx.split(self.Wqkv(hidden), 3, axis=-1)
        return self.Wo(attend(self._rotate(queries), self._rotate(keys), values, self._heads, mask))

    def _rotate(self, vectors: mx.array) -> mx.array:
        batch, length, width = vectors.shape
        heads = vectors.reshape(batch, length, self._heads, -1).transpose(0, 2, 1, 3)
        return self.rope(heads).transpose(0, 2, 1, 3).reshape(batch, length, width)


class _Mlp(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.Wi = nn.Linear(args.hidden_size, 2 * args.intermediate_size, bias=args.mlp_bias)
        self.Wo = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.mlp_bias)
        self._activation = ACTIVATIONS[args.hidden_activation]

    def __call__(self, hidden: mx.array) -> mx.array:
        inputs, gate = mx.split(self.Wi(hidden), 2, axis=-1)
        return self.Wo(self._activation(inputs) * gate)


class _Layer(nn.Module):
    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        # The embeddings of the first layer are normalized already.
        self.attn_norm = nn.LayerNorm(args.hidden_size, args.norm_eps, bias=args.norm_bias) if index else nn.Identity()
        self.attn = _Attention(args, index)
        self.mlp_norm = nn.LayerNorm(args.hidden_size, args.norm_eps, bias=args.norm_bias)
        self.mlp = _Mlp(args)

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        hidden = hidden + self.attn(self.attn_norm(hidden), mask)
        return hidden + self.mlp(self.mlp_norm(hidden))


class Model(nn.Module):
    """An encoder, which returns a vector for each token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embeddings = _Embeddings(args)
        self.layers = [_Layer(args, index) for index in range(args.num_hidden_layers)]
        self.final_norm = nn.LayerNorm(args.hidden_size, args.norm_eps, bias=args.norm_bias)
        self._args = args

    def __call__(self, batch: Batch) -> mx.array:
        everywhere = batch.attention_mask
        nearby = window_mask(batch.tokens.shape[1], self._args.local_attention // 2)
        nearby = nearby if everywhere is None else nearby & everywhere
        hidden = self.embeddings(batch.tokens)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, nearby if self._args.is_local(index) else everywhere)
        return self.final_norm(hidden)

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Drop the prefix that heads add, and the weights of the head for pretraining."""
        renamed = {name.removeprefix("model."): weight for name, weight in weights.items()}
        return {name: weight for name, weight in renamed.items() if not _UNUSED.match(name)}


class _Head(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.hidden_size, bias=args.classifier_bias)
        self.norm = nn.LayerNorm(args.hidden_size, args.norm_eps, bias=args.norm_bias)
        self._activation = ACTIVATIONS[args.classifier_activation]

    def __call__(self, pooled: mx.array) -> mx.array:
        return self.norm(self._activation(self.dense(pooled)))


class Classifier(Model):
    """An encoder with the head of a sequence classifier, which returns one logit for each sequence."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.head = _Head(args)
        self.classifier = nn.Linear(args.hidden_size, 1)

    def __call__(self, batch: Batch) -> mx.array:
        hidden = super().__call__(batch)
        pooled = hidden[:, 0] if self._args.classifier_pooling == "cls" else batch.mean(hidden)
        return self.classifier(self.head(pooled))[:, 0]

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Drop the prefix that heads add."""
        return {name.removeprefix("model."): weight for name, weight in weights.items()}
