"""Rank 0 of a group: runs its part of each step, after sending the other ranks a plan of it.

It samples, and so it waits for the logits before it plans the next decode step. The rest of the work of a step, such as
rendering its tokens, still overlaps with the next forward pass.
"""

import functools
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import msgspec

from osaurusd.rpc import framing, messages
from osaurusd.worker.engine.batch import BatchEntry, DecodeBatch, TokenOutput
from osaurusd.worker.engine.kv_cache import PackedKV
from osaurusd.worker.engine.planner import StepPlan
from osaurusd.worker.engine.prefix_cache import PrefixMatch, Tokens
from osaurusd.worker.engine.request import PrefillTask, SequenceId
from osaurusd.worker.parallel import operations
from osaurusd.worker.parallel.executor import StepResult
from osaurusd.worker.parallel.group import RankExecutor, RankGroup
from osaurusd.worker.parallel.operations import Operation

_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Numbered(list[Any]):
    """Arrays in the prefix cache that have a number on all ranks."""

    number: int


@dataclass
class PlanWriter:
    """Sends numbered plans.

    Attributes:
        send: sends frames to the daemon.
        sent: the number of the last plan.
        stored: how many numbers have been given to arrays.
        released: the numbers of arrays that no longer exist here, which the next plan will contain.
    """

    send: Callable[[Iterable[framing.Outgoing]], None]
    sent: int = 0
    stored: int = 0
    released: list[int] = field(default_factory=list)

    def write(self, *parts: Operation, blob: bytes | None = None) -> None:
        """Send a plan with these operations."""
        released, self.released = self.released, []
        # Last, because the prefix cache may have dropped at once what this plan stores.
        plan = [*parts, operations.Release(released)] if released else parts
        self.sent += 1
        frame = messages.Plan(number=self.sent, operations=msgspec.Raw(operations.ENCODER.encode(plan)))
        self.send([frame if blob is None else framing.FrameWithBlobs(frame, [blob])])

    def number(self, arrays: list[Any]) -> _Numbered:
        """Give arrays a number. It is released when nothing refers to them, such as a match of the prefix cache."""
        numbered = _Numbered(arrays)
        self.stored += 1
        numbered.number = self.stored
        weakref.finalize(numbered, self._release, numbered.number).atexit = False
        return numbered

    def _release(self, number: int) -> None:
        self.released.append(number)


@dataclass(frozen=True)
class Leader:
    """What rank 0 needs of its group; `abort` ends this process."""

    group: RankGroup
    plans: PlanWriter
    abort: Callable[[str], NoReturn]

    def create_executor(self, *arguments: Any) -> "LeaderExecutor":
        """Create the executor; the arguments are those of `LocalExecutor`."""
        return LeaderExecutor(*arguments, plans=self.plans, abort=self.abort)


def _fatal(method: _Method) -> _Method:
    """Make a failure of this method end the process: the other ranks are at another place of the plan then."""

    @functools.wraps(method)
    def run(executor: "LeaderExecutor", *arguments: Any) -> Any:
        try:
            return method(executor, *arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, the group cannot continue
            executor.abort(f"rank 0 failed at plan {executor.plans.sent}: {type(error).__name__}: {error}")

    return run  # type: ignore[return-value]


class LeaderExecutor(RankExecutor):
    """The executor of rank 0.

    Args:
        arguments: those of `LocalExecutor`.
        plans: sends the plans.
        abort: ends this process with a reason.
    """

    def __init__(self, *arguments: Any, plans: PlanWriter, abort: Callable[[str], NoReturn]) -> None:
        self.plans = plans
        self.abort = abort
        super().__init__(*arguments)

    @_fatal
    def clear(self) -> None:
        """Drop all sequences."""
        self.plans.write(operations.Clear())
        super().clear()

    @_fatal
    def begin(self, task: PrefillTask) -> None:
        """Take over a prompt whose prefill begins."""
        match = task.match or PrefixMatch(0, 0, [], None)
        blocks = [_number(block) for block in match.blocks]
        states = None if match.states is None else _number(match.states)
        tokens = task.tokens.astype("<i4", copy=False).tobytes()
        self.plans.write(operations.Begin(task.id, match.length, blocks, states), blob=tokens)
        super().begin(task)

    @_fatal
    def drop(self, prompt: SequenceId) -> None:
        """Drop a prompt, if it has begun."""
        self.plans.write(operations.Drop(prompt))
        super().drop(prompt)

    @_fatal
    def execute(self, plan: StepPlan) -> StepResult:
        """Run the forward passes of a step."""
        if plan.prefill:
            self.plans.write(operations.Prefill(plan.prefill))
        return super().execute(plan)

    @_fatal
    def start_decoding(self, prompts: list[SequenceId], entries: list[BatchEntry]) -> None:
        """Sample the first tokens after complete prompts; see `LocalExecutor.start_decoding`."""
        self.plans.write(operations.Start(prompts, [(entry.id, entry.length) for entry in entries]))
        super().start_decoding(prompts, entries)

    @_fatal
    def remove(self, ids: Collection[SequenceId]) -> None:
        """Remove decoding sequences."""
        if ids:
            self.plans.write(operations.Remove(list(ids)))
            super().remove(ids)

    @_fatal
    def store(self, id_: SequenceId, tokens: Tokens) -> None:
        """Store a decoding sequence, which consists of `tokens`, in the prefix cache."""
        super().store(id_, tokens)

    @_fatal
    def clear_cache(self) -> None:
        """Return freed buffers to the system, and everything that the prefix cache has dropped."""
        if self.plans.released:
            self.plans.write()  # first, so that the buffers of what is released are returned as well
        self.plans.write(operations.ClearCache())
        super().clear_cache()

    @_fatal
    def synchronize(self) -> None:
        """Wait for the decode step that is being computed."""
        super().synchronize()

    def _step(self, batch: DecodeBatch) -> dict[SequenceId, list[TokenOutput]]:
        self.plans.write(operations.Decode(self.batches.index(batch), batch.next_tokens()))
        return super()._step(batch)

    def _merge_batches(self, plan: tuple[tuple[SequenceId, ...], ...]) -> None:
        if len(plan) != len(self.batches):
            self.plans.write(operations.Merge(plan))
            super()._merge_batches(plan)

    def _insert(self, source: SequenceId, tokens: Tokens, read: Callable[[int, int], PackedKV], /) -> None:
        stored: list[tuple[int, int, int]] = []

        def read_numbered(start: int, end: int) -> PackedKV:
            block = self.plans.number(read(start, end))
            stored.append((block.number, start, end))
            return block

        super()._insert(source, tokens, read_numbered)
        if stored:
            self.plans.write(operations.Store(source, stored))

    def _insert_checkpoint(self, source: SequenceId, tokens: Tokens, states: list[Any], /) -> None:
        numbered = self.plans.number(states)
        self.plans.write(operations.StoreStates(source, numbered.number))
        super()._insert_checkpoint(source, tokens, numbered)


def _number(arrays: list[Any]) -> int:
    assert isinstance(arrays, _Numbered), "everything in the prefix cache of rank 0 has a number"
    return arrays.number
