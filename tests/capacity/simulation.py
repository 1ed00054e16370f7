"""A simulation of one host: the real scheduler of the pool and the real planner of the worker, with a simulated clock.

A cost model of forward passes takes the place of MLX, and a prefix cache that always finds the same share of a prompt
that of the real one.
"""

import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from osaurusd.errors import OsaurusError, QueueFull
from osaurusd.pool.scheduler import Scheduler
from osaurusd.pool.state import ModelSpec, ModelState, SchedulerConfig
from osaurusd.worker.engine.chunk_sizer import ChunkSizer
from osaurusd.worker.engine.images import FeatureCache
from osaurusd.worker.engine.planner import Planner
from osaurusd.worker.engine.prefix_cache import PrefixCache, PrefixMatch, Tokens
from osaurusd.worker.engine.request import Choice, EngineRequest
from tests.capacity.figures import Figures
from tests.capacity.model import MAX_WAITING, Kind, Load

KEY = "org/model"
LOAD_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""The `Retry-After` of a full queue."""


@dataclass
class _Response:
    """One request of a user: when it was sent, and when its first and last tokens came."""

    sent_at: float
    first_at: float = 0.0


@dataclass
class _Measured:
    """What is counted after the warm-up."""

    seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)
    rejected: int = 0


class _Waiter:
    """Continues a user's request once the model is loaded."""

    def __init__(self, granted: Callable[[ModelState], None], rejected: Callable[[], None]) -> None:
        self._granted = granted
        self._rejected = rejected

    def grant(self, model: ModelState) -> bool:
        self._granted(model)
        return True

    def reject(self, error: OsaurusError) -> None:
        assert isinstance(error, QueueFull), error
        self._rejected()


class _PrefixCache(PrefixCache):
    """Finds the same number of tokens of every prompt."""

    def __init__(self, cached_tokens: int) -> None:
        super().__init__(0, has_states=False)
        self._cached_tokens = cached_tokens

    def find(self, tokens: Tokens, limit: int) -> PrefixMatch:
        length = min(self._cached_tokens, limit)
        return PrefixMatch(length, length, [], None)


class Simulation:
    """One host and its users. Satisfies the `Effects` of the scheduler.

    Args:
        figures: the costs of forward passes.
        kind: what the users do.
        users: how many there are.
        memory_bytes: the memory budget.
        seed: of the users' times to think.
    """

    def __init__(self, figures: Figures, kind: Kind, users: int, memory_bytes: int, *, seed: int = 0) -> None:
        self._figures = figures
        self._kind = kind
        self._random = random.Random(seed)
        self._now = 0.0
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._responses: dict[int, _Response] = {}
        self._granted: dict[int, ModelState] = {}
        self._waiting: list[EngineRequest] = []
        self._measured = _Measured()
        self._prompt = [0] * kind.prompt_tokens
        self._scheduler = Scheduler(self, SchedulerConfig(memory_bytes, MAX_WAITING))
        self._batch = figures.max_sequences(memory_bytes, kind.context_tokens)
        self._planner, self._sizer = self._build_planner(memory_bytes)
        for _ in range(users):
            self._think()

    def run(self, warm_up: float, seconds: float) -> Load:
        """Simulate, and return what was measured after the warm-up."""
        self._run_until(warm_up)
        self._measured = measured = _Measured()
        self._run_until(warm_up + seconds)
        total = sum(duration for duration, _ in measured.batches)
        return Load(
            requests_per_second=len(measured.seconds) / seconds,
            seconds=statistics.fmean(measured.seconds),
            tokens_per_second=self._kind.output_tokens / statistics.fmean(measured.decode_seconds),
            batch=sum(duration * batch for duration, batch in measured.batches) / max(total, seconds),
            rejected=measured.rejected / max(len(measured.seconds) + measured.rejected, 1),
        )

    # Effects of the scheduler

    def start(self, model: ModelState) -> None:
        self._call_at(self._now + LOAD_SECONDS, lambda: self._scheduler.ready(model, self._now))

    def stop(self, model: ModelState, reason: OsaurusError, cause: object) -> None:
        raise AssertionError(f"the only model is stopped: {reason}")

    def update_limit(self, model: ModelState) -> None:
        """The limit of the only model is the whole budget."""

    # Users

    def _think(self) -> None:
        self._call_at(self._now + self._random.expovariate(1 / self._kind.think_seconds), self._send)

    def _send(self) -> None:
        id_ = next(self._numbers)
        self._responses[id_] = _Response(self._now)
        self._request(id_)

    def _request(self, id_: int) -> None:
        spec = ModelSpec(KEY, self._figures.weights_bytes)
        waiter = _Waiter(lambda model: self._submit(id_, model), lambda: self._retry(id_))
        self._scheduler.request(spec, waiter, self._now)

    def _submit(self, id_: int, model: ModelState) -> None:
        choice = Choice(0, sampling=None, output=None)
        try:
            self._planner.submit(EngineRequest(id_, self._prompt, [choice], self._kind.output_tokens))
        except QueueFull:
            # Not at once: the scheduler is in the middle of granting.
            self._call_at(self._now, lambda: self._reject(id_, model))
        else:
            self._granted[id_] = model

    def _reject(self, id_: int, model: ModelState) -> None:
        self._scheduler.release(model, self._now, served=False)
        self._retry(id_)

    def _retry(self, id_: int) -> None:
        self._measured.rejected += 1
        self._call_at(self._now + RETRY_SECONDS, lambda: self._request(id_))

    def _finish(self, id_: int) -> None:
        response = self._responses.pop(id_)
        self._measured.seconds.append(self._now - response.sent_at)
        self._measured.decode_seconds.append(self._now - response.first_at)
        self._scheduler.release(self._granted.pop(id_), self._now)
        self._think()

    # Time

    def _call_at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._numbers), call))

    def _run_until(self, end: float) -> None:
        while self._now < end:
            while self._timers and self._timers[0][0] <= self._now:
                heapq.heappop(self._timers)[2]()
            if self._planner.busy:
                self._step()
            else:
                self._now = self._timers[0][0]

    # The worker

    def _build_planner(self, memory_bytes: int) -> tuple[Planner, ChunkSizer]:
        sizer = self._figures.chunk_sizer(1)
        memory = self._figures.memory_budget(memory_bytes, sizer)
        cache = _PrefixCache(self._kind.prompt_tokens - self._kind.new_tokens)
        # A padding that costs nothing: all sequences share one batch, as the prediction assumes.
        planner = Planner(memory, sizer, cache, FeatureCache(0), max_waiting=MAX_WAITING, padding_per_pass=2**40)
        return planner, sizer

    def _step(self) -> None:
        """Do what the engine does in a step."""
        started_at = self._now
        if (plan := self._planner.plan_decode()) is not None:
            self._decode([id_ for batch in plan.decode for id_ in batch], len(plan.decode))
        self._planner.admit()
        if self._planner.begin_prefill():
            while (prefill := self._planner.plan_prefill()) is not None:
                self._planner.take_started()
                seconds = self._figures.pass_seconds + prefill.prefill_tokens / self._figures.prefill_rate
                self._now += seconds
                self._planner.record_prefill(prefill, seconds)
        for tasks in self._planner.start_decoding():
            for task in tasks:
                self._responses[task.request.id].first_at = self._now
        self._measured.batches.append((self._now - started_at, min(len(self._granted), self._batch)))

    def _decode(self, ids: list[tuple[int, int]], batches: int) -> None:
        assert batches == 1
        seconds = self._figures.step_seconds(len(ids))
        self._now += seconds
        self._sizer.record_decode(seconds)
        self._planner.record_decode(dict.fromkeys(ids, 1))
        finished = []
        for sequence in self._planner.decoding.values():
            sequence.choice.output_tokens.append(0)
            if len(sequence.choice.output_tokens) == self._kind.output_tokens:
                finished.append(sequence)
        if finished:
            self._planner.remove(finished)
            for sequence in finished:
                self._finish(sequence.request.id)
