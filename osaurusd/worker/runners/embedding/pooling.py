"""From the vectors of tokens to the vector of a text: the sentence-transformers modules after the network."""

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from osaurusd.inference.retrieval import Activation, Pipeline, Pooling
from osaurusd.worker.runners.embedding.inputs import Batch

_WEIGHTS = "model.safetensors"


def _identity(vectors: mx.array) -> mx.array:
    return vectors


_ACTIVATIONS: Mapping[Activation, Callable[[mx.array], mx.array]] = {
    "identity": _identity,
    "tanh": mx.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "sigmoid": mx.sigmoid,
}


def _first(hidden: mx.array, _: Batch) -> mx.array:
    return hidden[:, 0]


def _mean(hidden: mx.array, batch: Batch) -> mx.array:
    return batch.mean(hidden)


def _max(hidden: mx.array, batch: Batch) -> mx.array:
    return mx.where(batch.pooled, hidden, -mx.inf).max(axis=1)


def _mean_sqrt(hidden: mx.array, batch: Batch) -> mx.array:
    return batch.mean(hidden) * mx.sqrt(mx.maximum(batch.pooled.sum(axis=1), 1))


def _weighted_mean(hidden: mx.array, batch: Batch) -> mx.array:
    """Later tokens count more."""
    weights = mx.where(batch.pooled, mx.arange(1, hidden.shape[1] + 1)[None, :, None], 0).astype(hidden.dtype)
    return (hidden * weights).sum(axis=1) / mx.maximum(weights.sum(axis=1), 1)


def _last(hidden: mx.array, batch: Batch) -> mx.array:
    return mx.take_along_axis(hidden, batch.last[:, None, None], axis=1)[:, 0]


_POOLINGS: Mapping[Pooling, Callable[[mx.array, Batch], mx.array]] = {
    "cls": _first,
    "mean": _mean,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


class Pooler:
    """The modules after the network.

    Args:
        folder: the model's folder, which has the weights of dense layers.
        pipeline: the modules.
    """

    def __init__(self, folder: Path, pipeline: Pipeline) -> None:
        self._poolings = [_POOLINGS[name] for name in pipeline.pooling]
        self._layers = [(_load_dense(folder / layer.folder), layer.activation) for layer in pipeline.layers]

    def __call__(self, hidden: mx.array, batch: Batch) -> mx.array:
        """Return the vector of each sequence in float32, before normalization."""
        hidden = hidden.astype(mx.float32)
        vectors = mx.concatenate([pool(hidden, batch) for pool in self._poolings], axis=-1)
        for layer, activation in self._layers:
            vectors = _ACTIVATIONS[activation](layer(vectors))
        return vectors


def shorten(vectors: np.ndarray, dimensions: int | None, *, normalize: bool) -> np.ndarray:
    """Return the first dimensions of each vector, with length 1 if the model normalizes vectors."""
    vectors = vectors[:, :dimensions]
    if normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors, dtype="<f4")


def _load_dense(folder: Path) -> nn.Linear:
    """Load a dense layer.

    Raises:
        ValueError: the file has no weights of a linear layer.
    """
    weights: dict[str, mx.array] = mx.load(str(folder / _WEIGHTS))  # type: ignore[assignment]
    if "linear.weight" not in weights:
        raise ValueError(f"{folder.name}/{_WEIGHTS} has no `linear.weight`")
    outputs, inputs = weights["linear.weight"].shape
    layer = nn.Linear(inputs, outputs, bias="linear.bias" in weights)
    layer.load_weights([(name.removeprefix("linear."), each.astype(mx.float32)) for name, each in weights.items()])
    mx.eval(layer.parameters())
    return layer
