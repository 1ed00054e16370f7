"""The generation loop's state: requests from prompt to last token. Lives on the thread that owns MLX."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from osaurusd.errors import OsaurusError, QueueFull, RequestExceedsMemory
from osaurusd.inference.events import FinishReason
from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.caches import Cache
from osaurusd.worker.engine.decode import MAX_SEQUENCES, Decoder, Entrant, Group, Token
from osaurusd.worker.engine.memory import ORDINARY_TOKENS, Memory
from osaurusd.worker.engine.pace import WORTHWHILE_TOKENS, Pace
from osaurusd.worker.engine.prefill import Prefiller
from osaurusd.worker.engine.prefix import PrefixCache
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.engine.request import Choice, EngineRequest, Run
from osaurusd.worker.engine.sampling import SamplingState
from osaurusd.worker.frontend.output_parser import SequenceOutput

# An answer whose length only the context bounds is given room for this many tokens at a time.
RESERVED_TOKENS = 512


@dataclass(frozen=True)
class Limits:
    """What an engine may use; see `messages.Load`."""

    memory_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


@dataclass
class Arrivals:
    """Runs that are through, and what they are decoded from: alone, or several with one cache."""

    alone: list[tuple[Run, mx.array]] = field(default_factory=list)
    groups: list[tuple[list[Run], Cache, mx.array]] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for run, _ in self.alone] + [run for runs, _, _ in self.groups for run in runs]


class Engine:
    """Takes requests in, prefills their prompts in chunks, and decodes all that are ready together.

    Every method runs on the thread that owns MLX, which calls `decode` and `prefill` in turn while there is work; a
    cancelled request is gone by the next call. `progress` counts forward passes, and `reserved_bytes` is what weights
    and requests under way may grow to; any thread may read these two, and `busy`.

    Args:
        network: an mlx_lm model.
        end_tokens: token ids that end an answer.
        limits: what it may use.
    """

    def __init__(self, network: Any, end_tokens: list[int], limits: Limits) -> None:
        self._network = network
        self._end_tokens = frozenset(end_tokens)
        self._limits = limits
        probe = Probe.of(network)
        self.layout = probe.layout
        self.vocabulary = probe.vocabulary
        self._pace = Pace(probe.token_seconds, limits.stall_seconds, pass_seconds=probe.pass_seconds)
        self._memory = Memory(
            layout=probe.layout,
            weights_bytes=mx.get_active_memory(),
            limit_bytes=limits.memory_bytes,
            pass_bytes_per_token=probe.bytes_per_token,
            score_bytes=probe.score_bytes,
            pace=self._pace,
        )
        self._memory.limit(limits.memory_bytes)
        self._stepped_at = 0.0
        self._prefix = PrefixCache(limits.prefix_cache_bytes, has_states=probe.layout.has_states)
        self.progress = 0
        self._clear()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._prefiller.runs or self._decoding)

    @property
    def gathering_seconds(self) -> float:
        """How long to wait for requests that are about to come before anything is begun; 0 once something is."""
        runs = [*self._waiting, *self._prefiller.runs]
        if self._decoding or not runs or any(run.started for run in runs):
            return 0.0
        return self._pace.gathering_seconds(min(len(run.tokens) for run in runs))

    def set_limits(self, limits: Limits) -> None:
        """Keep within these limits from now on. Requests under way go on; what is kept of earlier ones may go."""
        self._limits = limits
        self._memory.limit(limits.memory_bytes)
        self._prefix.resize(limits.prefix_cache_bytes)
        mx.clear_cache()
        self._hand_out()

    def least_bytes(self, context_length: int | None) -> int:
        """What the model takes at the least while it serves a request of ordinary length."""
        return self._memory.least_bytes(min(context_length or ORDINARY_TOKENS, ORDINARY_TOKENS))

    def stats(self) -> messages.Stats:
        """What MLX holds now."""
        return messages.Stats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            prefix_cache_bytes=self._prefix.nbytes,
            reserved_bytes=self.reserved_bytes,
        )

    def add(self, request: EngineRequest) -> list[messages.Frame]:
        """Take a request in, or refuse it with the reason."""
        try:
            self._check(request)
        except OsaurusError as refusal:
            return [
                messages.Failed(id=request.id, code=refusal.code, message=refusal.message, location=refusal.location)
            ]
        if self.layout.batchable:
            self._waiting.append(Run.of(request, request.choices, []))
        else:
            self._waiting.extend(Run.of(request, [choice], []) for choice in request.choices)
        return []

    def cancel(self, id_: int) -> None:
        """Forget request `id_`, wherever it is; one that is not here has ended already."""
        for queue in (self._waiting, self._prefiller.runs):
            for run in [run for run in queue if run.request.id == id_]:
                queue.remove(run)
        self._leave([choice for request, choice in self._decoding.values() if request.id == id_])

    def drop_all(self) -> list[int]:
        """Begin anew with nothing; returns the ids of the requests that are lost."""
        runs = [*self._waiting, *self._prefiller.runs, *self._arrivals.runs]
        lost = [run.request.id for run in runs] + [request.id for request, _ in self._decoding.values()]
        self._prefix.clear()
        self._clear()
        return list(dict.fromkeys(lost))

    def decode(self) -> list[messages.Frame]:
        """One decode step for all that decode."""
        if not self._decoding:
            return []
        self.progress += 1
        self._note_step(time.perf_counter())
        tokens = self._decoder.step()
        frames: list[messages.Frame] = []
        ended: list[Choice] = []
        for token in tokens:
            if token.row not in self._decoding:
                continue  # another answer of its request has failed
            try:
                frames += self._take(token, ended)
            except Exception as error:  # noqa: BLE001  whatever comes of reading an answer costs that answer's request
                frames.append(self._spoilt(token.row, error))
        if ended := [choice for choice in ended if choice.sampling in self._decoding]:
            self._leave(ended)
            frames.append(self.stats())
        frames += self._give_up_failed()
        self._make_room()
        return frames

    def prefill(self) -> list[messages.Frame]:
        """Prompt tokens for those whose turn it is; who is through joins those that decode."""
        self._admit()
        if not self._prefiller.runs:
            return []
        shared = bool(self._decoding)
        mx.synchronize()  # a step under way takes its time whatever is done beside it
        self._note_step(0.0)
        budget: int | None = None
        frames: list[messages.Frame] = []
        while (budget is None or budget >= WORTHWHILE_TOKENS) and (run := self._prefiller.next_run()):
            if budget is None:
                self._pace.context = run.prefilled
                budget = self._pace.tokens(shared=shared)
            self.progress += 1
            runs = self._prefiller.mates(run, budget)
            try:
                budget -= self._process(runs, budget) + self._pace.pass_tokens
            except Exception as error:  # noqa: BLE001  whatever a model raises on a prompt costs that prompt's request
                Probe.of(self._network)  # raises if the model cannot process any
                # First, for another answer of the request that fails may be among those who are through.
                frames += self._join()
                frames += self._fail(runs, error)
                break
            if self._arrivals.runs and not shared:
                break  # with nobody decoding yet, the first token must not wait for the prompts of others
        return frames + self._join()

    def _process(self, runs: list[Run], most: int) -> int:
        """One pass; returns how many tokens it took."""
        if len(runs) > 1:
            tokens = len(runs) * max(run.left for run in runs)
            cache, logits = self._prefiller.advance_together(runs)
            self._arrivals.groups.append((runs, cache, logits))
            done = runs
        else:
            progress = self._prefiller.advance(runs[0], most)
            tokens = progress.tokens
            done = runs if progress.logits is not None else []
            if progress.logits is not None:
                self._arrivals.alone.append((runs[0], progress.logits))
        for run in done:
            self._prefiller.runs.remove(run)
        return tokens

    def _clear(self) -> None:
        self._waiting: deque[Run] = deque()
        self._prefiller = Prefiller(self._network, self.layout, self._prefix, self._pace)
        self._decoder = Decoder(self._network, self.layout, self._memory.weights_bytes)
        self._arrivals = Arrivals()
        self._decoding: dict[SamplingState, tuple[EngineRequest, Choice]] = {}
        self._hand_out()

    def _check(self, request: EngineRequest) -> None:
        """Refuse what could not be served even alone, and what would wait behind too many."""
        most = self._memory.most_tokens(self._together(request))
        if most is not None:
            self._bound(request, most)
        self._admit()  # those who can start do not wait
        waiting = len({run.request.id for run in self._waiting})
        if waiting >= self._limits.max_waiting and not request.continuation:
            raise QueueFull(f"{waiting} requests are waiting for this model already; try again later")

    def _bound(self, request: EngineRequest, most: int) -> None:
        needed = len(request.prompt_tokens) + (request.max_tokens if request.bounded else 1)
        if needed > most:
            raise RequestExceedsMemory(
                f"{len(request.choices)} answer(s) of {needed} tokens, prompt included, do not fit into this model's "
                f"memory even alone; there is room for {most} tokens each",
                location=("max_tokens",) if len(request.prompt_tokens) < most and request.bounded else ("prompt",),
            )
        request.max_tokens = min(request.max_tokens, most - len(request.prompt_tokens))

    def _together(self, request: EngineRequest) -> int:
        return len(request.choices) if self.layout.batchable else 1

    def _admit(self) -> None:
        """Start those who wait, in their order, as long as there is room."""
        most = MAX_SEQUENCES if self.layout.batchable else 1
        while self._waiting:
            run = self._waiting[0]
            decoding, arriving = self._reserved()
            joining = [_reserve(run, choice) for choice in run.choices]
            running = len(decoding) + len(arriving)
            fits = running + len(joining) <= most and self._memory.fits(decoding, [*arriving, *joining])
            if running and not fits:
                return
            for choice, reserved in zip(run.choices, joining, strict=True):
                choice.reserved = reserved
            self._prefiller.runs.append(self._waiting.popleft())
            self._hand_out()

    def _hand_out(self) -> None:
        """Leave to kept prompts what is promised to nobody; MLX's own freed buffers go before anything is short."""
        self.reserved_bytes = self._memory.peak_bytes(*self._reserved())
        limit = self._limits.memory_bytes
        if limit is None:
            return
        self._prefix.cap(max(limit - self.reserved_bytes, 0))
        if mx.get_active_memory() + mx.get_cache_memory() > limit:
            mx.clear_cache()

    def _reserved(self) -> tuple[list[int], list[int]]:
        """The lengths that those who decode may grow to, and those who are on their way."""
        runs = [*self._prefiller.runs, *self._arrivals.runs]
        arriving = [choice.reserved for run in runs for choice in run.choices]
        return [choice.reserved for _, choice in self._decoding.values()], arriving

    def _make_room(self) -> None:
        """Let answers that outgrew their reservation go on, at the cost of the youngest if there is no room."""
        outgrown = False
        for request, choice in self._decoding.values():
            full = len(request.prompt_tokens) + request.max_tokens
            if len(request.prompt_tokens) + len(choice.output_tokens) >= choice.reserved < full:
                choice.reserved = min(choice.reserved + RESERVED_TOKENS, full)
                outgrown = True
        if not outgrown:
            return
        while len(self._decoding) > 1 and not self._memory.fits(*self._reserved()):
            self._put_back(*list(self._decoding.values())[-1])
        self._hand_out()

    def _put_back(self, request: EngineRequest, choice: Choice) -> None:
        """Take an answer out of the batch, to go on from where it is once there is room again."""
        self._leave([choice])
        choice.sampling.begin_again(choice.output_tokens)
        self._waiting.appendleft(Run.of(request, [choice], choice.output_tokens))

    def _note_step(self, now: float) -> None:
        """A decode step begins, or one that began is complete and others go first: then `now` is 0."""
        if self._stepped_at:
            self._pace.decoded((now or time.perf_counter()) - self._stepped_at)
        self._stepped_at = now

    def _join(self) -> list[messages.Frame]:
        """Have decoded what is through, but for prompts that were only to be given back."""
        arrivals, self._arrivals = self._arrivals, Arrivals()
        frames: list[messages.Frame] = []
        for run in arrivals.runs:
            frames += _echo(run)
            for choice in run.choices:
                self._decoding[choice.sampling] = (run.request, choice)
        if not arrivals.runs:
            return frames
        self._decoder.join(
            [
                Entrant(choice.sampling, run.cache, len(run.tokens), logits)
                for run, logits in arrivals.alone
                for choice in run.choices
            ],
            [
                Group([run.choices[0].sampling for run in runs], cache, [len(run.tokens) for run in runs], logits)
                for runs, cache, logits in arrivals.groups
            ],
        )
        done = [(run.request, choice) for run in arrivals.runs if not run.request.max_tokens for choice in run.choices]
        for request, choice in done:
            frames += request.end(choice, "length", 0)
        self._leave([choice for _, choice in done])
        return frames + self._give_up_failed()

    def _take(self, token: Token, ended: list[Choice]) -> Iterator[messages.Frame]:
        """Tell what a token adds to its answer; one that is complete goes to `ended`."""
        request, choice = self._decoding[token.row]
        choice.output_tokens.append(token.token)
        answer = choice.output
        if token.token in self._end_tokens:
            ended.append(choice)
            yield from request.tell(choice, answer.finish(truncated=False))
            yield from request.end(choice, _stop_reason(answer), len(choice.output_tokens) - 1)
            return
        news = answer.add(token.token, token.score)
        full = len(choice.output_tokens) >= request.max_tokens
        yield from request.tell(choice, news)
        if full and not answer.stopped:
            yield from request.tell(choice, answer.finish(truncated=True))
        if answer.stopped or full:
            ended.append(choice)
            yield from request.end(
                choice, _stop_reason(answer) if answer.stopped else "length", len(choice.output_tokens)
            )

    def _leave(self, choices: list[Choice]) -> None:
        """Take answers out of the batch, and keep what their caches hold for requests that go on from there."""
        for choice in choices:
            request, _ = self._decoding.pop(choice.sampling)
            self._keep(request, choice)
        self._decoder.leave([choice.sampling for choice in choices])
        if not self._decoding:
            self._stepped_at = 0.0
        self._hand_out()

    def _keep(self, request: EngineRequest, choice: Choice) -> None:
        if not self._prefix.enabled or not choice.output_tokens:
            return
        tokens = Run.of(request, [choice], choice.output_tokens).tokens
        kept = self._decoder.kept(choice.sampling)
        self._prefix.insert(tokens, kept.pack)
        if self.layout.has_states:
            self._prefix.insert_state(tokens, kept.states())

    def _give_up_failed(self) -> list[messages.Frame]:
        """End the requests whose answers cannot be held to what they are to be."""
        frames: list[messages.Frame] = []
        for row, reason in self._decoder.take_failed().items():
            if row in self._decoding:  # else it has ended with the very token that its constraint knew nothing of
                request, _ = self._decoding[row]
                self.cancel(request.id)
                message = f"the answer cannot be held to its schema: {reason}"
                frames.append(messages.Failed(id=request.id, code=ErrorCode.INVALID_REQUEST, message=message))
        return frames

    def _spoilt(self, row: SamplingState, error: Exception) -> messages.Frame:
        request, _ = self._decoding[row]
        self.cancel(request.id)
        reason = f"the answer could not be read: {type(error).__name__}: {error}"
        return messages.Failed(id=request.id, code=ErrorCode.INTERNAL_ERROR, message=reason)

    def _fail(self, runs: list[Run], error: Exception) -> list[messages.Frame]:
        """A prompt that cannot be processed costs its request."""
        if len(runs) > 1:
            for run in runs:
                run.by_itself = True  # which of them it was will be seen
            return []
        self.cancel(runs[0].request.id)
        reason = f"the model failed on this prompt: {type(error).__name__}: {error}"
        return [messages.Failed(id=runs[0].request.id, code=ErrorCode.INTERNAL_ERROR, message=reason)]


def _reserve(run: Run, choice: Choice) -> int:
    """The length that an answer is promised room for when it starts."""
    request = run.request
    rest = request.max_tokens - len(choice.output_tokens)
    return len(run.tokens) + (rest if request.bounded else min(rest, RESERVED_TOKENS))


def _stop_reason(answer: SequenceOutput) -> FinishReason:
    return "tool_calls" if answer.has_tool_calls else "stop"


def _echo(run: Run) -> Iterator[messages.Frame]:
    if run.request.echo is not None and not run.choices[0].output_tokens:
        for choice in run.choices:
            yield from run.request.tell(choice, run.request.echo(run.scores))
