"""The interface between a worker's session and its model."""

from collections.abc import Sequence
from typing import Any, Protocol

from osaurusd.rpc import messages
from osaurusd.worker.engine.mlx_thread import Engine


class Runner(Protocol):
    """A loaded model. Runs on the MLX thread, except where a method says otherwise."""

    @property
    def engine(self) -> Engine:
        """The engine that the MLX thread steps."""

    @property
    def loaded(self) -> messages.Loaded:
        """The description of the model for the daemon."""

    def prepare(self, frame: messages.Request, blobs: Sequence[bytes] = ()) -> Any:
        """Build the engine's request from a frame and its blobs. Safe on any thread.

        Raises:
            OsaurusError: the request is invalid.
        """

    def apply_limits(self, frame: messages.Limits) -> None:
        """Apply new memory limits."""
