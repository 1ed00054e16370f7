"""The generation engine: processes requests from prompt to last token, on the thread that owns MLX."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from osaurusd.errors import OsaurusError
from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.batch import BatchEntry, TokenOutput
from osaurusd.worker.engine.chunk_sizer import ChunkSizer
from osaurusd.worker.engine.device import Device, is_device_failure
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.memory import ORDINARY_TOKENS, MemoryBudget
from osaurusd.worker.engine.planner import Planner
from osaurusd.worker.engine.prefix_cache import PrefixCache
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.engine.request import EngineRequest, PrefillTask, Sequence, SequenceId
from osaurusd.worker.parallel.executor import Executor
from osaurusd.worker.parallel.leader import Leader
from osaurusd.worker.parallel.local import LocalExecutor, padding_per_pass


@dataclass(frozen=True)
class Limits:
    """The resources of an engine; see `messages.Load`."""

    memory_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2
    feature_cache_bytes: int = 0


class Engine:
    """Prefills prompts in chunks and decodes all sequences together, as the planner decides.

    All methods run on the thread that owns MLX, which alternates `decode` and `prefill` while the engine is busy. Other
    threads may read `progress`, `reserved_bytes` and `busy`.

    Args:
        network: an mlx_lm model.
        end_tokens: token ids that end a sequence.
        limits: resources to use.
        clock: measures steps and requests.
        device: the device that MLX uses; by default, its default device.
        leader: the group of ranks that this process leads, if it has only a part of the model.

    Attributes:
        progress: counts forward passes.
    """

    def __init__(
        self,
        network: Any,
        end_tokens: list[int],
        limits: Limits,
        *,
        clock: Callable[[], float] = time.perf_counter,
        device: Device | None = None,
        leader: Leader | None = None,
    ) -> None:
        self._network = network
        self._end_tokens = frozenset(end_tokens)
        self._limits = limits
        self._clock = clock
        self._device = device or Device.default()
        probe = Probe.from_network(network, self._device, bool if leader is None else leader.group.agree)
        self.vocabulary = probe.vocabulary
        self.chunk_sizer = ChunkSizer(
            probe.token_seconds, limits.stall_seconds, pass_seconds=probe.pass_seconds, on_gpu=self._device.is_gpu
        )
        self.memory = self._create_memory_budget(probe)
        if leader is not None:
            leader.group.share(self.memory)
        self.layout = self.memory.layout
        self.memory.set_limit(limits.memory_bytes)
        self.prefix_cache = PrefixCache(limits.prefix_cache_bytes, has_states=self.layout.has_states)
        self.features = FeatureCache(limits.feature_cache_bytes)
        self.planner = Planner(
            self.memory,
            self.chunk_sizer,
            self.prefix_cache,
            self.features,
            max_waiting=limits.max_waiting,
            padding_per_pass=padding_per_pass(self.layout, self.memory.weights_bytes, self._device),
        )
        self._executor = self._create_executor(leader)
        self._decode_started_at: float | None = None
        self.progress = 0

    def _create_executor(self, leader: Leader | None) -> Executor:
        create = LocalExecutor if leader is None else leader.create_executor
        return create(self._network, self.layout, self.prefix_cache, self.features, self._clock, self._device)

    def _create_memory_budget(self, probe: Probe) -> MemoryBudget:
        return MemoryBudget(
            layout=probe.layout,
            weights_bytes=mx.get_active_memory(),
            limit_bytes=self._limits.memory_bytes,
            pass_bytes_per_token=probe.bytes_per_token,
            score_bytes=probe.score_bytes,
            chunk_sizer=self.chunk_sizer,
        )

    @property
    def busy(self) -> bool:
        return self.planner.busy

    @property
    def reserved_bytes(self) -> int:
        """What weights and running requests may grow to."""
        return self.planner.reserved_bytes

    @property
    def batching_seconds(self) -> float:
        """How long to wait for more requests before the first step; 0 once a step has started."""
        return self.planner.batching_seconds

    def set_limits(self, limits: Limits) -> None:
        """Apply new limits. Running requests continue; the prefix cache may shrink."""
        self._limits = limits
        self.memory.set_limit(limits.memory_bytes)
        self.prefix_cache.resize(limits.prefix_cache_bytes)
        self.planner.max_waiting = limits.max_waiting
        self._executor.clear_cache()
        self.planner.update_reservations()

    @property
    def pass_bytes(self) -> int:
        """The intermediates of the largest prefill pass. Freed buffers of that size speed up the next pass."""
        return self.memory.pass_bytes

    def drop_caches(self) -> None:
        """Clear all caches and return freed buffers to the system. Running requests continue."""
        self.prefix_cache.clear()
        self.features.clear()
        self._executor.clear_cache()

    def serving_bytes(self, context_length: int | None) -> int:
        """Return the memory that the model needs to serve one request of ordinary length."""
        return self.memory.serving_bytes(min(context_length or ORDINARY_TOKENS, ORDINARY_TOKENS))

    def stats(self) -> messages.Stats:
        return messages.Stats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            prefix_cache_bytes=self.prefix_cache.nbytes,
            reserved_bytes=self.reserved_bytes,
        )

    def add(self, request: EngineRequest) -> list[messages.Frame]:
        """Queue a request, or reject it."""
        request.submitted_at = self._clock()
        try:
            self.planner.submit(request)
        except OsaurusError as error:
            return [messages.Failed(id=request.id, code=error.code, message=error.message, location=error.location)]
        return []

    def cancel(self, request_id: int) -> None:
        """Drop a request; unknown ids are ignored, as the request may have ended."""
        tasks, sequences = self.planner.cancel(request_id)
        for task in tasks:
            self._executor.drop(task.id)
        self._remove(sequences)

    def drop_all(self) -> list[int]:
        """Drop all requests and the prefix cache; return the ids of the requests."""
        lost = self.planner.request_ids
        self.prefix_cache.clear()
        self.features.clear()
        self.planner.clear()
        self._executor.clear()
        self._decode_started_at = None
        self._executor.clear_cache()
        return lost

    def decode(self) -> list[messages.Frame]:
        """Run a decode step, if any sequence decodes."""
        plan = self.planner.plan_decode()
        if plan is None:
            return []
        self.progress += 1
        now = self._clock()
        self._record_decode_time(now)
        self._decode_started_at = now
        result = self._executor.execute(plan)
        if not result.steady:
            self._decode_started_at = None
        self.planner.record_decode({id_: len(tokens) for id_, tokens in result.tokens.items()})
        frames: list[messages.Frame] = []
        now = self._clock()
        for id_, tokens in result.tokens.items():
            frames += self._receive(id_, tokens, now)
        if finished := [sequence for sequence in self.planner.decoding.values() if sequence.choice.finished]:
            self._remove(finished)
            frames.append(self.stats())
        frames += self._fail_constrained()
        self._preempt()
        return frames

    def prefill(self) -> list[messages.Frame]:
        """Process prompt tokens within this step's budget; complete prompts start to decode."""
        self.planner.admit()
        if not self.planner.begin_prefill():
            return []
        overlap = self._end_decode_step()
        frames: list[messages.Frame] = []
        while plan := self.planner.plan_prefill():
            frames += self._begin_prompts()
            self.progress += 1
            try:
                result = self._executor.execute(plan)
            except Exception as error:
                # Any other exception on a prompt fails only that request.
                if is_device_failure(error):
                    raise
                Probe.from_network(self._network, self._device)  # raises if the model cannot process any prompt
                tasks = self.planner.tasks(plan)
                # Complete prompts first: other choices of the failing request may be among them.
                frames += self._start_decoding()
                return frames + self._fail_prompts(tasks, error)
            tasks = self.planner.tasks(plan)
            for task in tasks:
                task.scores += result.prompt_scores.get(task.id, [])
                task.choices[0].logprobs = result.candidate_logprobs.get(task.id, [])
            self.planner.record_prefill(plan, max(result.seconds - overlap, result.seconds / 2))
            overlap = 0.0
            if plan.prefill:
                frames += [task.request.progress(task.prefilled) for task in tasks if task.reports_progress]
        return frames + self._start_decoding()

    def _begin_prompts(self) -> list[messages.Frame]:
        """Report the requests whose prefill begins."""
        frames: list[messages.Frame] = []
        for task in self.planner.take_started():
            if task.request.cached_tokens is None:
                task.request.cached_tokens = task.prefilled
                frames += task.request.start(self._clock())
            self._executor.begin(task)
        return frames

    def _start_decoding(self) -> list[messages.Frame]:
        """Have complete prompts decoded, unless they were only to be echoed."""
        completed = self.planner.start_decoding()
        if not completed:
            return []
        now = self._clock()
        frames: list[messages.Frame] = []
        finished: list[Sequence] = []
        for tasks in completed:
            for task in tasks:
                if task.request.decode_started_at is None or task.request.scored is not None:
                    task.request.decode_started_at = now
                frames += task.echo()
                for image in task.request.images:
                    image.release()
            self._executor.start_decoding([task.id for task in tasks], _batch_entries(tasks))
            finished += [one for task in tasks for one in task.sequences if not task.request.max_tokens]
        for sequence in finished:
            frames += sequence.request.finish(sequence.choice, "length", 0, now)
        self._remove(finished)
        return frames + self._fail_constrained()

    def _receive(self, id_: SequenceId, tokens: list[TokenOutput], now: float) -> list[messages.Frame]:
        """Report a sequence's new tokens, up to the one that finishes it."""
        frames: list[messages.Frame] = []
        for token in tokens:
            sequence = self.planner.decoding.get(id_)
            if sequence is None or sequence.choice.finished:
                break  # another choice of the request has failed, or an earlier token was the last
            is_end = token.token in self._end_tokens
            try:
                frames += sequence.receive(token.token, token.score, is_end=is_end, now=now)
            except Exception as error:  # noqa: BLE001  an exception of the parser fails only that request
                message = f"the output could not be parsed: {type(error).__name__}: {error}"
                frames.append(self._fail(sequence.request.id, ErrorCode.INTERNAL_ERROR, message))
        return frames

    def _remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove decoding sequences, and store their caches for requests that continue them."""
        sequences = list(sequences)
        for sequence in sequences:
            if sequence.choice.output_tokens:
                task = PrefillTask.from_request(sequence.request, [sequence.choice])
                self._executor.store(sequence.id, task.tokens)
        self._executor.remove({sequence.id for sequence in sequences})
        self.planner.remove(sequences)
        if not self.planner.decoding:
            self._decode_started_at = None

    def _preempt(self) -> None:
        """Return sequences to the queue if those that need more memory leave no room for them."""
        for sequence in self.planner.extend_reservations():
            self._remove([sequence])
            sequence.choice.sampling.rewind(sequence.choice.output_tokens)
            self.planner.requeue(sequence)

    def _end_decode_step(self) -> float:
        """Let prefill begin, and return the estimated time that the first pass waits for the decode step.

        On a CPU, this waits for the decode step, to measure both. A GPU would idle until the prefill pass arrives, so
        its decode steps are measured only if another one follows.
        """
        if self._device.is_gpu:
            overlap = 0.0 if self._decode_started_at is None else self.chunk_sizer.step_seconds
            self._decode_started_at = None
            return overlap
        self._executor.synchronize()
        self._record_decode_time(self._clock())
        return 0.0

    def _record_decode_time(self, now: float) -> None:
        """Record the time of the decode step that has ended, if there is one."""
        if self._decode_started_at is not None:
            self.chunk_sizer.record_decode(now - self._decode_started_at)
        self._decode_started_at = None

    def _fail_constrained(self) -> list[messages.Frame]:
        """Fail the requests whose output constraint has failed."""
        frames: list[messages.Frame] = []
        for id_, reason in self._executor.take_failed().items():
            if id_ in self.planner.decoding:  # otherwise the token that the constraint rejects was the last
                message = f"the output constraint failed: {reason}"
                frames.append(self._fail(id_[0], ErrorCode.INVALID_REQUEST, message))
        return frames

    def _fail_prompts(self, tasks: list[PrefillTask], error: Exception) -> list[messages.Frame]:
        """Fail the request whose prompt cannot be processed; if several shared the pass, repeat them separately."""
        if len(tasks) > 1:
            for task in tasks:
                task.isolated = True
            return []
        message = f"the model failed to process this prompt: {type(error).__name__}: {error}"
        return [self._fail(tasks[0].request.id, ErrorCode.INTERNAL_ERROR, message)]

    def _fail(self, request_id: int, code: ErrorCode, message: str) -> messages.Frame:
        self.cancel(request_id)
        return messages.Failed(id=request_id, code=code, message=message)


def _batch_entries(tasks: list[PrefillTask]) -> list[BatchEntry]:
    return [
        BatchEntry(sequence.id, sequence.choice.sampling, len(task.tokens), task.request.position_delta)
        for task in tasks
        for sequence in task.sequences
    ]
