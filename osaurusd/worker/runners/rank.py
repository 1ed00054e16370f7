"""A worker that is one rank of a group: it opens its part of the model, joins the group, and then runs its part."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import mlx.core as mx

from osaurusd.rpc import framing, messages
from osaurusd.worker.engine.chunk_sizer import ChunkSizer
from osaurusd.worker.engine.device import Device
from osaurusd.worker.engine.engine import Limits
from osaurusd.worker.engine.memory import ORDINARY_TOKENS, MemoryBudget
from osaurusd.worker.engine.mlx_thread import Work
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.parallel import operations
from osaurusd.worker.parallel.follower import FollowerExecutor
from osaurusd.worker.parallel.group import RankGroup, free_port, join
from osaurusd.worker.parallel.leader import Leader, PlanWriter
from osaurusd.worker.runners.base import Runner
from osaurusd.worker.runners.loading import Model, apply_limits
from osaurusd.worker.runners.sharding import ModelPart
from osaurusd.worker.runners.text import TextRunner

Abort = Callable[[str], NoReturn]
"""Ends the process with a reason."""


class Rank:
    """A rank from `Load` to its end. Runs on the MLX thread, except where a method says otherwise.

    Args:
        part: this rank's part of the model.
        send: sends frames to the daemon.
        abort: ends this process with a reason.
    """

    def __init__(self, part: ModelPart, send: Callable[[Iterable[framing.Outgoing]], None], abort: Abort) -> None:
        self._part = part
        self._plans = PlanWriter(send)
        self._abort = abort
        self._follower: Follower | None = None
        self._received = 0

    @classmethod
    def open(
        cls,
        frame: messages.Load,
        spec: messages.RankSpec,
        send: Callable[[Iterable[framing.Outgoing]], None],
        abort: Abort,
    ) -> "Rank":
        """Open this rank's part of the model; raises what `ModelPart.open` raises."""
        return cls(ModelPart.open(frame, spec, Device.default()), send, abort)

    def ready(self) -> messages.RankReady:
        return messages.RankReady(port=free_port(self._part.spec.address))

    @property
    def plan(self) -> int:
        """The number of the last plan that was sent or executed. Safe on any thread."""
        return self._plans.sent if self._follower is None else self._follower.progress

    def connect(self, frame: messages.Connect, on_bytes: Callable[[int], None]) -> Runner:
        """Join the group and load the model.

        Raises:
            LoadFailed: the group is incomplete, or the model cannot be split.
            OSError, ValueError, RuntimeError and whatever else mlx_lm raises for files it cannot read.
        """
        load, spec = self._part.frame, self._part.spec
        group = join(spec, frame)
        model = self._part.load(group, on_bytes)
        if spec.rank == 0:
            limits = Limits(load.memory_limit_bytes, load.prefix_cache_bytes, load.max_waiting, load.stall_seconds)
            runner = TextRunner(model, limits, Leader(group, self._plans, self._abort))
            apply_limits(load, runner.engine.pass_bytes)
            return runner
        self._follower = Follower(model, group, load, lambda: self._received)
        return FollowerRunner(self._follower, model, load)

    def receive(self, plan: messages.Plan, blobs: Sequence[bytes]) -> Work:
        """Return the work of executing a plan, which ends the process if it fails. Safe on any thread."""
        self._received += 1
        return partial(self._execute, plan, blobs)

    def _execute(self, plan: messages.Plan, blobs: Sequence[bytes]) -> list[messages.Frame]:
        try:
            assert self._follower is not None, "rank 0 sends plans once all ranks are loaded, and gets none"
            return self._follower.execute(plan, blobs)
        except Exception as error:  # noqa: BLE001  whatever it is, the group cannot continue
            self._abort(f"rank {self._part.spec.rank} failed at plan {plan.number}: {type(error).__name__}: {error}")


class Follower:
    """What takes the place of the engine: it executes plans, and has no requests.

    Args:
        model: this rank's part of the model.
        group: the group of ranks.
        frame: the memory limit.
        received: returns how many plans have arrived.

    Attributes:
        progress: how many plans have been executed.
    """

    batching_seconds = 0.0

    def __init__(self, model: Model, group: RankGroup, frame: messages.Load, received: Callable[[], int]) -> None:
        device = Device.default()
        probe = Probe.from_network(model.network, device, group.agree)
        self.budget = MemoryBudget(
            layout=probe.layout,
            weights_bytes=mx.get_active_memory(),
            limit_bytes=frame.memory_limit_bytes,
            pass_bytes_per_token=probe.bytes_per_token,
            score_bytes=probe.score_bytes,
            chunk_sizer=ChunkSizer(
                probe.token_seconds, frame.stall_seconds, pass_seconds=probe.pass_seconds, on_gpu=device.is_gpu
            ),
        )
        group.share(self.budget)
        self._executor = FollowerExecutor(model.network, self.budget.layout, time.perf_counter, device)
        self._received = received
        self.progress = 0

    @property
    def busy(self) -> bool:
        return self.progress < self._received()

    @property
    def reserved_bytes(self) -> int:
        """The memory in use: only rank 0 knows what requests may grow to."""
        return mx.get_active_memory()

    def execute(self, plan: messages.Plan, blobs: Sequence[bytes]) -> list[messages.Frame]:
        """Execute the next plan.

        Raises:
            ValueError: it is not the next one, or invalid.
            RuntimeError: the connection to another rank was lost.
        """
        if plan.number != self.progress + 1:
            raise ValueError(f"plan {self.progress + 1} is missing")
        ends = False
        for operation in operations.DECODER.decode(plan.operations):
            self._executor.run(operation, blobs)
            ends |= isinstance(operation, operations.Remove | operations.ClearCache)
        self.progress += 1
        return [self.stats()] if ends else []

    def stats(self) -> messages.Stats:
        return messages.Stats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            prefix_cache_bytes=self._executor.prefix_cache_bytes,
            reserved_bytes=self.reserved_bytes,
        )

    # Requests and limits concern rank 0 only

    def add(self, request: Any) -> list[messages.Frame]:  # noqa: ARG002
        raise AssertionError("the daemon sends requests to rank 0")

    def cancel(self, request_id: int) -> None: ...

    def decode(self) -> Sequence[framing.Outgoing]:
        return []

    def prefill(self) -> Sequence[framing.Outgoing]:
        return []

    def drop_all(self) -> list[int]:
        return []

    def drop_caches(self) -> None: ...


class FollowerRunner:
    """The runner of all ranks but rank 0."""

    def __init__(self, follower: Follower, model: Model, frame: messages.Load) -> None:
        self.engine = follower
        device = Device.default()
        tokens = min(model.context_length or ORDINARY_TOKENS, ORDINARY_TOKENS)
        self.loaded = messages.Loaded(
            device=device.name,
            dtype=model.dtype,
            memory_bytes=mx.get_active_memory(),
            batched=follower.budget.layout.batchable,
            serving_bytes=follower.budget.serving_bytes(tokens),
            working_set_bytes=device.working_set_bytes,
        )
        apply_limits(frame, follower.budget.pass_bytes)

    def prepare(self, frame: messages.Request, blobs: Sequence[bytes] = ()) -> Any:  # noqa: ARG002
        """Followers get no requests."""
        raise AssertionError("the daemon sends requests to rank 0")

    def apply_limits(self, frame: messages.Limits) -> None:
        """The limits of a follower are fixed, as rank 0 knows them from the start of the group."""
