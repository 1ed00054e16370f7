"""The engine of encoders: computes one batch of inputs in each step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from osaurusd.errors import OsaurusError, QueueFull, RequestExceedsMemory
from osaurusd.inference.events import Completed, Timings, Usage
from osaurusd.inference.retrieval import Scores, Vectors
from osaurusd.rpc import framing, messages
from osaurusd.worker.engine.device import Device
from osaurusd.worker.runners.embedding.batching import BatchQueue
from osaurusd.worker.runners.embedding.inputs import TokenSequence

# Tokens in a pass. A GPU needs many to be busy. On a CPU, more than these are not faster, but delay other requests.
GPU_PASS_TOKENS = 8192
CPU_PASS_TOKENS = 2048

# As the daemon's estimate assumes before the model is loaded.
ORDINARY_TOKENS = 2048

# How long the first request waits for others that are being tokenized.
BATCHING_SECONDS = 0.003


@dataclass
class EncoderRequest:
    """A request whose inputs are tokenized.

    Attributes:
        finish: turns the outputs of all inputs, one row for each, into the result.
    """

    id: int
    sequences: Sequence[TokenSequence]
    finish: Callable[[np.ndarray], Vectors | Scores]
    submitted_at: float = 0.0
    started_at: float | None = None
    rows: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


class EncoderEngine:
    """Runs batches until no request waits; satisfies the `Engine` of the MLX thread.

    Args:
        encode: computes one row for each sequence of a batch. The sequences are ordered by length.
        pass_bytes: the intermediates of a pass.
        max_waiting: requests that may wait before further ones are rejected.
        device: the device that MLX uses.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[TokenSequence]], np.ndarray],
        *,
        pass_bytes: Callable[[int], int],
        max_waiting: int,
        device: Device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = 0
        self._max_budget = GPU_PASS_TOKENS if device.is_gpu else CPU_PASS_TOKENS
        self._room = math.inf
        self.queue = BatchQueue(self._max_budget)
        self.weights_bytes = mx.get_active_memory()
        self._encode = encode
        self._pass_bytes = pass_bytes
        self._max_waiting = max_waiting
        self._clock = clock
        self._requests: dict[int, EncoderRequest] = {}

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    @property
    def batching_seconds(self) -> float:
        return 0.0 if any(each.started_at for each in self._requests.values()) else BATCHING_SECONDS

    @property
    def pass_bytes(self) -> int:
        """The intermediates of the largest pass."""
        return self._pass_bytes(self.queue.budget)

    @property
    def reserved_bytes(self) -> int:
        return self.weights_bytes + self.pass_bytes

    @property
    def serving_bytes(self) -> int:
        """The memory for passes of ordinary size."""
        return self.weights_bytes + self._pass_bytes(min(ORDINARY_TOKENS, self.queue.budget))

    def set_limit(self, memory_bytes: int | None) -> None:
        """Choose the size of passes so that they fit into the memory limit."""
        self._room = math.inf if memory_bytes is None else memory_bytes - self.weights_bytes
        budget = self._max_budget
        while budget > 1 and self._pass_bytes(budget) > self._room:
            budget //= 2
        self.queue.budget = budget

    def stats(self) -> messages.Stats:
        return messages.Stats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            reserved_bytes=self.reserved_bytes,
        )

    def drop_caches(self) -> None:
        mx.clear_cache()

    def add(self, request: EncoderRequest) -> list[messages.Frame]:
        """Queue a request, or reject it."""
        if len(self._requests) > self._max_waiting:
            reason = f"{self._max_waiting} requests wait for the model already; try again later"
            return [_failed(request.id, QueueFull(reason))]
        longest = max(map(len, request.sequences))
        if longest > self.queue.budget and self._pass_bytes(longest) > self._room:
            needed, room = self._pass_bytes(longest) >> 20, max(int(self._room), 0) >> 20
            reason = f"an input of {longest} tokens needs {needed} MB, but the model may use {room} MB; shorten it"
            return [_failed(request.id, RequestExceedsMemory(reason))]
        request.submitted_at = self._clock()
        self._requests[request.id] = request
        self.queue.add(request.id, [len(each) for each in request.sequences])
        return []

    def cancel(self, request_id: int) -> None:
        if self._requests.pop(request_id, None):
            self.queue.remove(request_id)

    def drop_all(self) -> list[int]:
        lost = list(self._requests)
        self._requests.clear()
        self.queue.clear()
        mx.clear_cache()
        return lost

    def decode(self) -> list[messages.Frame]:
        """Encoders generate nothing."""
        return []

    def prefill(self) -> list[framing.Outgoing]:
        """Compute one batch; return the results of the requests that are complete."""
        batch = self.queue.next_batch()
        now = self._clock()
        for request in {each.request for each in batch}:
            self._requests[request].started_at = self._requests[request].started_at or now
        computed = self._encode([self._requests[each.request].sequences[each.number] for each in batch])
        self.progress += 1
        for each, row in zip(batch, computed, strict=True):
            self._requests[each.request].rows[each.number] = row
        complete = [id_ for id_ in {each.request for each in batch} if self._is_complete(self._requests[id_])]
        return [frame for id_ in complete for frame in self._finish(self._requests.pop(id_))]

    def _is_complete(self, request: EncoderRequest) -> bool:
        return len(request.rows) == len(request.sequences)

    def _finish(self, request: EncoderRequest) -> list[framing.Outgoing]:
        try:
            result = request.finish(np.stack([request.rows[index] for index in range(len(request.sequences))]))
        except OsaurusError as error:
            return [_failed(request.id, error)]
        started_at = request.started_at or request.submitted_at
        timings = Timings(queue=started_at - request.submitted_at, prefill=self._clock() - started_at)
        completed = Completed(usage=Usage(prompt_tokens=request.tokens), timings=timings)
        return [_output(request.id, result), messages.Output(id=request.id, event=completed)]


def _output(id_: int, result: Vectors | Scores) -> framing.Outgoing:
    if isinstance(result, Scores):
        return messages.Output(id=id_, event=result)
    header = Vectors(dimensions=result.dimensions, truncated=result.truncated)
    return framing.FrameWithBlobs(messages.Output(id=id_, event=header), [result.data])


def _failed(id_: int, error: OsaurusError) -> messages.Failed:
    return messages.Failed(id=id_, code=error.code, message=error.message, location=error.location)
