"""Runners: what a worker does with its model, by the model's task."""

from collections.abc import Callable, Mapping

from osaurusd.rpc import messages
from osaurusd.worker.runners.base import Runner
from osaurusd.worker.runners.embedding.runner import EmbeddingRunner
from osaurusd.worker.runners.text import TextRunner

LoadRunner = Callable[[messages.Load, Callable[[int], None]], Runner]
"""Loads a model. Calls its second argument with the size of each array of weights once it is in memory."""

RUNNERS: Mapping[str, LoadRunner] = {
    "generate": TextRunner.load,
    "embed": EmbeddingRunner.load,
    "rerank": EmbeddingRunner.load,
}
"""How to load a model, by its task."""
