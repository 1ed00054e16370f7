"""Runners: what a worker does with its model, by the model's task."""

import importlib
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


def load_runner(frame: messages.Load, on_bytes: Callable[[int], None]) -> Runner:
    """Load a model with the runner of its task."""
    if not frame.vision:
        return RUNNERS[frame.task](frame, on_bytes)
    # Imported here because mlx_vlm and Pillow may be missing, and take time that other models do not need.
    vision = importlib.import_module("osaurusd.worker.runners.vision.runner")
    runner: Runner = vision.VisionRunner.load(frame, on_bytes)
    return runner
