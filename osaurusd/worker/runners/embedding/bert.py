"""The encoders BERT, RoBERTa and XLM-RoBERTa, and their sequence classifiers.

Parameters are named as in transformers, except for layer norms and the levels in between that only group them.
"""

import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.base import BaseModelArgs

from osaurusd.wire.errors import as_json
from osaurusd.worker.runners.embedding.inputs import Batch
from osaurusd.worker.runners.embedding.kernels import attention, gelu

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
}

# Weights of other heads, and of the pooler, which only BERT's classifier uses.
_UNUSED = re.compile(r"^(?:cls\.|lm_head\.)|embeddings\.position_ids$")

_RENAMED = (
    (r"^(?:bert|roberta)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"^pooler\.dense\.", "pooler."),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.attention\.output\.dense\.", ".attention.output."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.intermediate\.dense\.", ".intermediate."),
    (r"\.output\.LayerNorm\.", ".output_norm."),
    (r"\.output\.dense\.", ".output."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


@dataclass
class ModelArgs(BaseModelArgs):  # type: ignore[misc]  # mlx_lm ships no types
    """The keys of config.json that the network depends on."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 1
    position_embedding_type: str = "absolute"

    @property
    def is_roberta(self) -> bool:
        return self.model_type != "bert"

    @property
    def first_position(self) -> int:
        """RoBERTa numbers positions from the padding token's id plus 1."""
        return self.pad_token_id + 1 if self.is_roberta else 0


def attend(queries: mx.array, keys: mx.array, values: mx.array, heads: int, mask: mx.array | None) -> mx.array:
    """Attend in both directions; all arguments and the result have the shape (batch, tokens, width)."""
    batch, length, width = queries.shape
    size = width // heads
    queries, keys, values = (
        each.reshape(batch, length, heads, size).transpose(0, 2, 1, 3) for each in (queries, keys, values)
    )
    output = attention(queries, keys, values, mask)
    return output.transpose(0, 2, 1, 3).reshape(batch, length, width)


class _Embeddings(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.norm = nn.LayerNorm(args.hidden_size, args.layer_norm_eps)
        self._first_position = args.first_position

    def __call__(self, batch: Batch) -> mx.array:
        positions = mx.arange(self._first_position, self._first_position + batch.tokens.shape[1])
        types = mx.zeros_like(batch.tokens) if batch.types is None else batch.types
        embedded = self.word_embeddings(batch.tokens) + self.position_embeddings(positions)
        return self.norm(embedded + self.token_type_embeddings(types))


class _Attention(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.query = nn.Linear(args.hidden_size, args.hidden_size)
        self.key = nn.Linear(args.hidden_size, args.hidden_size)
        self.value = nn.Linear(args.hidden_size, args.hidden_size)
        self.output = nn.Linear(args.hidden_size, args.hidden_size)
        self._heads = args.num_attention_heads

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        return self.output(attend(self.query(hidden), self.key(hidden), self.value(hidden), self._heads, mask))


class _Layer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = _Attention(args)
        self.attention_norm = nn.LayerNorm(args.hidden_size, args.layer_norm_eps)
        self.intermediate = nn.Linear(args.hidden_size, args.intermediate_size)
        self.output = nn.Linear(args.intermediate_size, args.hidden_size)
        self.output_norm = nn.LayerNorm(args.hidden_size, args.layer_norm_eps)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        hidden = self.attention_norm(hidden + self.attention(hidden, mask))
        return self.output_norm(hidden + self.output(self._activation(self.intermediate(hidden))))


class Model(nn.Module):
    """An encoder, which returns a vector for each token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        if args.position_embedding_type != "absolute":
            raise ValueError(f"`position_embedding_type` {as_json(args.position_embedding_type)} is not supported")
        self.embeddings = _Embeddings(args)
        self.layers = [_Layer(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, batch: Batch) -> mx.array:
        hidden = self.embeddings(batch)
        for layer in self.layers:
            hidden = layer(hidden, batch.attention_mask)
        return hidden

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Rename transformers' weights, and drop those of other heads."""
        return {name: weight for name, weight in rename(weights).items() if not name.startswith("pooler.")}


class Classifier(Model):
    """An encoder with the head of a sequence classifier, which returns one logit for each sequence."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        # BERT's head is its pooler and a projection, RoBERTa's two layers with the same computation.
        self.pooler = nn.Linear(args.hidden_size, args.hidden_size)
        self.classifier = nn.Linear(args.hidden_size, 1)

    def __call__(self, batch: Batch) -> mx.array:
        first = super().__call__(batch)[:, 0]
        return self.classifier(mx.tanh(self.pooler(first)))[:, 0]

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Rename transformers' weights."""
        renamed = rename(weights)
        for old, new in (("classifier.dense.", "pooler."), ("classifier.out_proj.", "classifier.")):
            renamed = {name.replace(old, new): weight for name, weight in renamed.items()}
        return renamed


def rename(weights: dict[str, Any]) -> dict[str, Any]:
    """Rename transformers' weights, and drop those of heads for pretraining."""
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if not _UNUSED.search(name):
            renamed[name] = weight
    return renamed
