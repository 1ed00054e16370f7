"""The generation loop's state: requests from prompt to last token. Lives on the thread that owns MLX."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from osaurusd import ipc
from osaurusd.errors import OsaurusError, QueueFull, RequestExceedsMemory
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.answer import Answer
from osaurusd.worker.caches import Cache, Layout
from osaurusd.worker.decode import MAX_SEQUENCES, Decoder, Entrant, Token
from osaurusd.worker.memory import ORDINARY_TOKENS, Memory
from osaurusd.worker.pace import Pace
from osaurusd.worker.prefill import Prefiller
from osaurusd.worker.prefix import PrefixCache
from osaurusd.worker.request import Choice, Request, Run
from osaurusd.worker.sampling import Row

# An answer whose length only the context bounds is given room for this many tokens at a time.
RESERVED_TOKENS = 512

# A pass to learn a model's caches and speed from: long enough to be typical, short enough not to be noticed.
PROBE_TOKENS = 32

# Of a model that does not say; generous, for it only makes requests wait a little earlier.
ASSUMED_HEADS = 32
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Limits:
    """What an engine may use; see `ipc.Load`."""

    memory_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


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
        probe = _Probe.of(network)
        self.layout = probe.layout
        self.vocabulary = probe.vocabulary
        self._pace = Pace(probe.token_seconds, limits.stall_seconds)
        self._memory = Memory(
            layout=probe.layout,
            weights_bytes=mx.get_active_memory(),
            limit_bytes=limits.memory_bytes,
            pass_bytes_per_token=probe.bytes_per_token,
            score_bytes=_attention_heads(network) * FLOAT32_BYTES,
            pace=self._pace,
        )
        self._memory.limit(limits.memory_bytes)
        self._prefilled_lately = False
        self._prefix = PrefixCache(limits.prefix_cache_bytes, has_states=probe.layout.has_states)
        self.progress = 0
        self._clear()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._prefiller.runs or self._decoding)

    def set_limits(self, limits: Limits) -> None:
        """Keep within these limits from now on. Requests under way go on; what is kept of earlier ones may go."""
        self._limits = limits
        self._memory.limit(limits.memory_bytes)
        self._prefix.resize(limits.prefix_cache_bytes)
        mx.clear_cache()

    def least_bytes(self, context_length: int | None) -> int:
        """What the model takes at the least while it serves a request of ordinary length."""
        return self._memory.least_bytes(min(context_length or ORDINARY_TOKENS, ORDINARY_TOKENS))

    def stats(self) -> ipc.Stats:
        """What MLX holds now."""
        return ipc.Stats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            prefix_cache_bytes=self._prefix.nbytes,
            reserved_bytes=self.reserved_bytes,
        )

    def add(self, request: Request) -> list[ipc.Frame]:
        """Take a request in, or refuse it with the reason."""
        try:
            self._check(request)
        except OsaurusError as refusal:
            return [ipc.Failed(id=request.id, code=refusal.code, message=refusal.message, param=refusal.param)]
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
        runs = [*self._waiting, *self._prefiller.runs]
        lost = [run.request.id for run in runs] + [request.id for request, _ in self._decoding.values()]
        self._prefix.clear()
        self._clear()
        return list(dict.fromkeys(lost))

    def decode(self) -> list[ipc.Frame]:
        """One decode step for all that decode."""
        if not self._decoding:
            return []
        self.progress += 1
        started = time.perf_counter()
        tokens = self._decoder.step()
        if not self._prefilled_lately:
            self._pace.decoded(time.perf_counter() - started)
        self._prefilled_lately = False
        frames: list[ipc.Frame] = []
        ended: list[Choice] = []
        for token in tokens:
            try:
                frames += self._take(token, ended)
            except Exception as error:  # noqa: BLE001  whatever comes of reading an answer costs that answer's request
                frames.append(self._spoilt(token.row, error))
        if ended:
            self._leave(ended)
            frames.append(self.stats())
        frames += self._give_up_failed()
        self._make_room()
        return frames

    def prefill(self) -> list[ipc.Frame]:
        """Prompt tokens for those whose turn it is; who is through joins those that decode."""
        self._admit()
        frames: list[ipc.Frame] = []
        ready: list[tuple[Run, mx.array]] = []
        shared = bool(self._decoding)
        budget = self._pace.tokens(shared=shared)
        while budget > 0 and (run := self._prefiller.next_run()):
            self._prefilled_lately = True
            self.progress += 1
            try:
                progress = self._prefiller.advance(run, budget)
            except Exception as error:  # noqa: BLE001  whatever a model raises on a prompt costs that prompt's request
                frames.append(self._fail(run, error))
                break
            budget -= progress.tokens
            if progress.logits is not None:
                self._prefiller.runs.remove(run)
                ready.append((run, progress.logits))
                # With nobody decoding yet, the first token must not wait for the prompts of others.
                budget = budget if shared else 0
        return frames + self._join(ready)

    def _clear(self) -> None:
        self._waiting: deque[Run] = deque()
        self._prefiller = Prefiller(self._network, self.layout, self._prefix, self._pace)
        self._decoder = Decoder(self._network, self.layout)
        self._decoding: dict[Row, tuple[Request, Choice]] = {}
        self._count_reserved()

    def _count_reserved(self) -> None:
        self.reserved_bytes = self._memory.peak_bytes(self._reserved())

    def _check(self, request: Request) -> None:
        """Refuse what could not be served even alone, and what would wait behind too many."""
        most = self._memory.most_tokens(self._together(request))
        if most is not None:
            self._bound(request, most)
        self._admit()  # those who can start do not wait
        if len(self._waiting) >= self._limits.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests are waiting for this model already; try again later")

    def _bound(self, request: Request, most: int) -> None:
        needed = len(request.prompt) + (request.max_tokens if request.bounded else 1)
        if needed > most:
            raise RequestExceedsMemory(
                f"{len(request.choices)} answer(s) of {needed} tokens, prompt included, do not fit into this model's "
                f"memory even alone; there is room for {most} tokens each",
                param="max_tokens" if len(request.prompt) < most and request.bounded else "messages",
            )
        request.max_tokens = min(request.max_tokens, most - len(request.prompt))

    def _together(self, request: Request) -> int:
        return len(request.choices) if self.layout.batchable else 1

    def _admit(self) -> None:
        """Start those who wait, in their order, as long as there is room."""
        most = MAX_SEQUENCES if self.layout.batchable else 1
        while self._waiting:
            run = self._waiting[0]
            running = self._reserved()
            joining = [_reserve(run, choice) for choice in run.choices]
            fits = len(running) + len(joining) <= most and self._fits(running, joining)
            if running and not fits:
                return
            for choice, reserved in zip(run.choices, joining, strict=True):
                choice.reserved = reserved
            self._prefiller.runs.append(self._waiting.popleft())
            self._count_reserved()

    def _fits(self, running: list[int], joining: list[int] | None = None) -> bool:
        """Whether there is room, made by dropping what is kept of earlier prompts and MLX's own freed buffers."""
        if not self._memory.fits(running, joining or []):
            return False
        if self._limits.memory_bytes is not None:
            spare = self._limits.memory_bytes - self._memory.peak_bytes(running, joining or [])
            self._prefix.shrink(self._prefix.nbytes - spare)
            if mx.get_active_memory() + mx.get_cache_memory() > self._limits.memory_bytes:
                mx.clear_cache()
        return True

    def _reserved(self) -> list[int]:
        """The lengths that everything under way may grow to."""
        prefilling = [choice.reserved for run in self._prefiller.runs for choice in run.choices]
        return [*prefilling, *(choice.reserved for _, choice in self._decoding.values())]

    def _make_room(self) -> None:
        """Let answers that outgrew their reservation go on, at the cost of the youngest if there is no room."""
        outgrown = False
        for request, choice in self._decoding.values():
            if len(request.prompt) + len(choice.said) >= choice.reserved:
                choice.reserved += RESERVED_TOKENS
                outgrown = True
        if outgrown:
            self._count_reserved()
        while outgrown and len(self._decoding) > 1 and not self._fits(self._reserved()):
            self._put_back(*list(self._decoding.values())[-1])

    def _put_back(self, request: Request, choice: Choice) -> None:
        """Take an answer out of the batch, to go on from where it is once there is room again."""
        self._leave([choice])
        choice.row.begin_again(choice.said)
        self._waiting.appendleft(Run.of(request, [choice], choice.said))

    def _join(self, ready: list[tuple[Run, mx.array]]) -> list[ipc.Frame]:
        frames: list[ipc.Frame] = []
        entrants: list[Entrant] = []
        for run, logits in ready:
            frames += _echo(run)
            if run.request.max_tokens == 0:
                frames += [frame for choice in run.choices for frame in run.request.end(choice, "length", 0)]
                continue
            for choice in run.choices:
                entrants.append(Entrant(choice.row, run.cache, len(run.tokens), logits))
                self._decoding[choice.row] = (run.request, choice)
        if entrants:
            self._decoder.join(entrants)
        return frames + self._give_up_failed()

    def _take(self, token: Token, ended: list[Choice]) -> Iterator[ipc.Frame]:
        """Tell what a token adds to its answer; one that is complete goes to `ended`."""
        request, choice = self._decoding[token.row]
        choice.said.append(token.token)
        answer = choice.answer
        if token.token in self._end_tokens:
            ended.append(choice)
            yield from request.tell(choice, answer.finish(cut=False))
            yield from request.end(choice, _stop_reason(answer), len(choice.said) - 1)
            return
        news = answer.add(token.token, token.score)
        full = len(choice.said) >= request.max_tokens
        yield from request.tell(choice, news)
        if full and not answer.stopped:
            yield from request.tell(choice, answer.finish(cut=True))
        if answer.stopped or full:
            ended.append(choice)
            yield from request.end(choice, _stop_reason(answer) if answer.stopped else "length", len(choice.said))

    def _leave(self, choices: list[Choice]) -> None:
        """Take answers out of the batch, and keep what their caches hold for requests that go on from there."""
        for choice in choices:
            request, _ = self._decoding.pop(choice.row)
            self._keep(request, choice)
        self._decoder.leave([choice.row for choice in choices])
        self._count_reserved()

    def _keep(self, request: Request, choice: Choice) -> None:
        if not self._prefix.enabled or not choice.said:
            return
        tokens = Run.of(request, [choice], choice.said).tokens
        kept = self._decoder.kept(choice.row)
        self._prefix.insert(tokens, kept.pack)
        if self.layout.has_states:
            self._prefix.insert_state(tokens, kept.states())

    def _give_up_failed(self) -> list[ipc.Frame]:
        """End the requests whose answers cannot be held to what they are to be."""
        frames: list[ipc.Frame] = []
        for row, reason in self._decoder.take_failed().items():
            if row in self._decoding:  # else it has ended with the very token that its constraint knew nothing of
                request, _ = self._decoding[row]
                self.cancel(request.id)
                message = f"the answer cannot be held to its schema: {reason}"
                frames.append(ipc.Failed(id=request.id, code=ErrorCode.INVALID_REQUEST, message=message))
        return frames

    def _spoilt(self, row: Row, error: Exception) -> ipc.Frame:
        request, _ = self._decoding[row]
        self.cancel(request.id)
        reason = f"the answer could not be read: {type(error).__name__}: {error}"
        return ipc.Failed(id=request.id, code=ErrorCode.INTERNAL_ERROR, message=reason)

    def _fail(self, run: Run, error: Exception) -> ipc.Frame:
        """A prompt that cannot be processed costs its request; a model that cannot process any raises here."""
        self.cancel(run.request.id)
        _Probe.of(self._network)
        reason = f"the model failed on this prompt: {type(error).__name__}: {error}"
        return ipc.Failed(id=run.request.id, code=ErrorCode.INTERNAL_ERROR, message=reason)


@dataclass(frozen=True)
class _Probe:
    """What a first pass through a model shows. It also warms up what MLX compiles on first use."""

    layout: Layout
    vocabulary: int
    token_seconds: float
    bytes_per_token: int

    @classmethod
    def of(cls, network: Any) -> "_Probe":
        _first_pass(network)  # compiles
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        started = time.perf_counter()
        cache, vocabulary = _first_pass(network)
        seconds = time.perf_counter() - started
        needed = mx.get_peak_memory() - before
        return cls(Layout.of(cache), vocabulary, seconds / PROBE_TOKENS, needed // PROBE_TOKENS)


def _first_pass(network: Any) -> tuple[Cache, int]:
    """The cache that it filled, and the width of the logits."""
    cache: Cache = make_prompt_cache(network)
    logits = network(mx.array([[0] * PROBE_TOKENS]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache, logits.shape[-1]


def _attention_heads(network: Any) -> int:
    """Heads whose attention scores are held in memory for a whole pass: those of MLX's CPU backend."""
    if mx.default_device() != mx.cpu:
        return 0
    heads = getattr(getattr(network, "args", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else ASSUMED_HEADS


def _reserve(run: Run, choice: Choice) -> int:
    """The length that an answer is promised room for when it starts."""
    request = run.request
    rest = request.max_tokens - len(choice.said)
    return len(run.tokens) + (rest if request.bounded else min(rest, RESERVED_TOKENS))


def _stop_reason(answer: Answer) -> ipc.FinishReason:
    return "tool_calls" if answer.called else "stop"


def _echo(run: Run) -> Iterator[ipc.Frame]:
    if run.request.echo is not None:
        for choice in run.choices:
            yield from run.request.tell(choice, run.request.echo(run.scores))
