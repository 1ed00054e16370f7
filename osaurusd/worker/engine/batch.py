"""A decode batch: sequences that share one forward pass per step, with one cache."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine import kv_cache
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.kv_cache import Cache, CacheLayout, PackedKV
from osaurusd.worker.engine.request import SequenceId
from osaurusd.worker.engine.sampler import BatchSampler, LogprobArrays, SamplingState
from osaurusd.worker.frontend import constraint
from osaurusd.worker.frontend.constraint import Constraint, ConstraintFailed
from osaurusd.worker.frontend.logprobs import Score


@dataclass(frozen=True)
class BatchEntry:
    """A sequence of `length` tokens in the cache."""

    id: SequenceId
    sampling: SamplingState
    length: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """A token that a step yields for a sequence. The sequence's cache already holds it."""

    token: int
    score: Score | None


class CacheReader(Protocol):
    """Copies from the cache of one sequence while it decodes; valid until the next step."""

    def pack(self, start: int, end: int) -> PackedKV: ...

    def copy_states(self) -> list[Any]: ...


class DecodeBatch:
    """Sequences of similar length.

    While a step returns its tokens, the next step is already being computed. A single sequence keeps its own cache,
    which needs no mask; several share a merged cache, padded to the longest sequence.

    Args:
        network: an mlx_lm model.
        layout: layout of its caches.
        entries: the first sequences; the first token of each is sampled immediately.
        cache: cache of all entries, merged if `merged`.
        logits: logits of the next token [entries, vocabulary].
        device: the device that MLX uses.

    Attributes:
        failed: sequences whose constraint failed, with the reason.
    """

    def __init__(
        self,
        network: Any,
        layout: CacheLayout,
        entries: Sequence[BatchEntry],
        cache: Cache,
        logits: mx.array,
        *,
        merged: bool,
        device: Device = CPU,
    ) -> None:
        self._network = network
        self._layout = layout
        self._cache = cache
        self._merged = merged
        self.ids = [entry.id for entry in entries]
        self.lengths = [entry.length for entry in entries]
        self.failed: dict[SequenceId, str] = {}
        self._states = [entry.sampling for entry in entries]
        self._device = device
        self._sampler = self._build_sampler()
        self._tokens, self._logprobs = self._sampler.sample(logits, self._masked(logits))
        self._start_evaluation()

    def step(self) -> dict[SequenceId, list[TokenOutput]]:
        """Return the tokens of this step, and start computing the next one."""
        current, logprobs = self._tokens, self._logprobs
        logits = self._network(current[:, None], cache=self._cache)[:, -1, :]
        self.lengths = [length + 1 for length in self.lengths]
        if self._sampler.overlaps:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        if self._sampler.constrained:
            # The next masks depend on the current tokens, and are computed while the forward pass runs. An end token
            # is irrelevant for the constraint: its sequence leaves before the next step.
            self._advance_constraints(current.tolist())  # type: ignore[arg-type]
        self._tokens, self._logprobs = self._sampler.sample(logits, self._masked(logits))
        self._start_evaluation()
        tokens: list[int] = current.tolist()  # type: ignore[assignment]
        scores = self._scores(logprobs)
        return {id_: [TokenOutput(tokens[row], scores.get(row))] for row, id_ in enumerate(self.ids)}

    def absorb(self, other: "DecodeBatch") -> None:
        """Take over all sequences of another batch."""
        cache = self._merged_cache()
        for layer, other_layer in zip(cache, other._merged_cache(), strict=True):
            layer.extend(other_layer)
        self._cache, self._merged = cache, True
        if other._logprobs is not None:
            logprobs = LogprobArrays.empty() if self._logprobs is None else self._logprobs
            self._logprobs = logprobs.extend(other._logprobs, len(self.ids))
        self._tokens = mx.concatenate([self._tokens, other._tokens])
        self.ids += other.ids
        self.lengths += other.lengths
        self.failed |= other.failed
        self._states += other._states
        self._sampler = self._build_sampler()

    def remove(self, ids: Collection[SequenceId]) -> None:
        keep = [row for row, id_ in enumerate(self.ids) if id_ not in ids]
        if len(keep) == len(self.ids):
            return
        self.ids = [self.ids[row] for row in keep]
        self.lengths = [self.lengths[row] for row in keep]
        self._states = [self._states[row] for row in keep]
        self._sampler = self._build_sampler()
        if not keep:
            return
        self._tokens = self._tokens[mx.array(keep)]
        self._logprobs = self._logprobs.filter(keep) if self._logprobs else None
        if len(keep) == 1:
            self._cache, self._merged = kv_cache.extract_row(self._cache, keep[0]), False
        else:
            for layer in self._cache:
                layer.filter(keep)

    def reader(self, id_: SequenceId) -> CacheReader:
        """Return a reader of a sequence's cache, which includes its last returned token."""
        row = self.ids.index(id_)
        if self._merged:
            return _RowReader(self._layout, self._cache, row, self.lengths[row])
        return _SequenceReader(self._layout, self._cache)

    def _build_sampler(self) -> BatchSampler:
        return BatchSampler(self._states, on_gpu=self._device.is_gpu)

    def _merged_cache(self) -> Cache:
        return self._cache if self._merged else self._layout.merge([self._cache])

    def _advance_constraints(self, tokens: list[int]) -> None:
        for row in self._sampler.constrained:
            with self._constraint(row) as rule:
                rule.advance(tokens[row])

    def _masked(self, logits: mx.array) -> mx.array | None:
        """Return the logits of the constrained rows with forbidden tokens at -inf."""
        constrained = self._sampler.constrained
        if not constrained:
            return None
        width = -(-logits.shape[-1] // 32)
        allowed = np.full((len(constrained), width), -1, np.int32)
        for position, row in enumerate(constrained):
            with self._constraint(row) as rule:
                rule.fill(allowed[position])
        return constraint.apply(logits[mx.array(constrained)], allowed, on_gpu=self._device.is_gpu)

    @contextlib.contextmanager
    def _constraint(self, row: int) -> Iterator[Constraint]:
        """Yield the row's constraint; if it fails, record that without disturbing the other rows."""
        rule = self._states[row].constraint
        assert rule is not None, "the row is constrained"
        try:
            yield rule
        except ConstraintFailed as failure:
            self.failed[self.ids[row]] = str(failure)

    def _scores(self, logprobs: LogprobArrays | None) -> dict[int, Score]:
        """Return the scores by row, each with the number of alternatives that its request specifies."""
        if logprobs is None:
            return {}
        scores = zip(logprobs.rows, logprobs.scores(), strict=True)
        return {row: Score(score.logprob, score.top[: self._states[row].logprobs]) for row, score in scores}

    def _start_evaluation(self) -> None:
        mx.async_eval(self._tokens, self._logprobs.arrays if self._logprobs else [])  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _SequenceReader:
    layout: CacheLayout
    cache: Cache

    def pack(self, start: int, end: int) -> PackedKV:
        return kv_cache.pack(self.layout, self.cache, start, end)

    def copy_states(self) -> list[Any]:
        return kv_cache.copy_states(self.cache)


@dataclass(frozen=True)
class _RowReader:
    layout: CacheLayout
    batch: Cache
    row: int
    length: int

    def pack(self, start: int, end: int) -> PackedKV:
        return kv_cache.pack_row(self.layout, self.batch, self.row, self.length, start, end)

    def copy_states(self) -> list[Any]:
        return kv_cache.copy_row_states(self.batch, self.row)
