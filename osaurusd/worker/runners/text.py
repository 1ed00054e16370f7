"""The runner of language models."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx

from osaurusd.rpc import messages
from osaurusd.worker.engine.device import Device
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.request import EngineRequest
from osaurusd.worker.frontend import constraint
from osaurusd.worker.parallel.leader import Leader
from osaurusd.worker.runners.loading import Model, apply_limits, load_model_folder
from osaurusd.worker.runners.request_builder import RequestBuilder


class TextRunner:
    """A language model with its engine.

    Args:
        model: the loaded model.
        limits: what its engine may use.
        leader: the group of ranks that this process leads, if it has only a part of the model.
    """

    def __init__(self, model: Model, limits: Limits, leader: Leader | None = None) -> None:
        device = Device.default()
        self.engine = Engine(model.network, model.end_tokens, limits, device=device, leader=leader)
        if device.is_gpu:
            constraint.compile_masks(self.engine.vocabulary)
        self._limits = limits
        self._builder = self._create_builder(model)
        self.loaded = messages.Loaded(
            device=device.name,
            dtype=model.dtype,
            memory_bytes=mx.get_active_memory(),
            batched=self.engine.layout.batchable,
            serving_bytes=self.engine.serving_bytes(model.context_length),
            working_set_bytes=device.working_set_bytes,
        )

    @classmethod
    def load(cls, frame: messages.Load, on_bytes: Callable[[int], None]) -> "TextRunner":
        """Load a model; raises whatever `loading.load_model_folder` raises."""
        model = load_model_folder(frame, on_bytes)
        limits = Limits(frame.memory_limit_bytes, frame.prefix_cache_bytes, frame.max_waiting, frame.stall_seconds)
        runner = cls(model, limits)
        apply_limits(frame, runner.engine.pass_bytes)
        return runner

    def _create_builder(self, model: Model) -> RequestBuilder:
        return RequestBuilder(model, self.engine.layout, self.engine.vocabulary)

    def prepare(self, frame: messages.Request, blobs: Sequence[bytes] = ()) -> EngineRequest:
        """Build the engine's request from a frame and its blobs. Safe on any thread.

        Raises:
            OsaurusError: the request is invalid.
        """
        return self._builder.build(frame, blobs)

    def apply_limits(self, frame: messages.Limits) -> None:
        """Apply new memory limits."""
        apply_limits(frame, self.engine.pass_bytes)
        self._limits = replace(
            self._limits, memory_bytes=frame.memory_limit_bytes, prefix_cache_bytes=frame.prefix_cache_bytes
        )
        self.engine.set_limits(self._limits)
