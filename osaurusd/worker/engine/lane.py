"""A lane: sequences that decode in one forward pass, with one cache."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine import caches
from osaurusd.worker.engine.caches import Cache, Layout, Packed
from osaurusd.worker.engine.sampling import Batch, SamplingState
from osaurusd.worker.engine.scores import Scores
from osaurusd.worker.frontend import constraint
from osaurusd.worker.frontend.constraint import Constraint, ConstraintFailed
from osaurusd.worker.frontend.logprobs import Score


@dataclass(frozen=True)
class Entrant:
    """A sequence whose prompt is processed: `cache` holds all of it, `logits` [1, vocabulary] are those after it.

    The decoder takes the cache over unless several sequences go on from it.
    """

    row: SamplingState
    cache: Cache
    length: int
    logits: mx.array


@dataclass(frozen=True)
class Group:
    """Sequences whose prompts were processed together: one merged cache, and the logits [rows, vocabulary] after it."""

    rows: list[SamplingState]
    cache: Cache
    lengths: list[int]
    logits: mx.array


@dataclass(frozen=True)
class Token:
    """What a step gave a sequence. The sequence's cache holds the token by then."""

    row: SamplingState
    token: int
    score: Score | None


class Kept(Protocol):
    """Reads a sequence's cache while it decodes; only until the next step."""

    def pack(self, start: int, end: int) -> Packed: ...

    def states(self) -> list[Any]: ...


class Lane:
    """Sequences of about the same length.

    While the tokens of one step are handed out, the next step is under way already. A lone sequence keeps its own
    cache, which needs no mask; several share a merged one, padded to the longest.

    Args:
        network: an mlx_lm model.
        layout: of its caches.
        group: who begins here; the first token of each is chosen at once.
        merged: whether the group's cache is a merged one.
    """

    def __init__(self, network: Any, layout: Layout, group: Group, *, merged: bool) -> None:
        self._network = network
        self._layout = layout
        self._cache = group.cache
        self._merged = merged
        self.rows = list(group.rows)
        self.lengths = list(group.lengths)
        self.failed: dict[SamplingState, str] = {}
        self._batch = Batch(self.rows)
        self._tokens, self._scores = self._batch.choose(group.logits, self._masked(group.logits))
        self._start_evaluating()

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def step(self) -> list[Token]:
        """Hand out one token for every sequence, and have the next ones computed."""
        current, scores = self._tokens, self._scores
        logits = self._network(current[:, None], cache=self._cache)[:, -1, :]
        self.lengths = [length + 1 for length in self.lengths]
        if self._batch.constrained:
            # What may be said next depends on what is said now: the masks are made while the pass is computed. An end
            # token is no matter of the constraint, and its sequence is taken out before it could say anything else.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self._advance(current.tolist())  # type: ignore[arg-type]
        self._tokens, self._scores = self._batch.choose(logits, self._masked(logits))
        self._start_evaluating()
        values: list[int] = current.tolist()  # type: ignore[assignment]
        told = _by_row(self.rows, scores)
        return [Token(row, value, told.get(at)) for at, (row, value) in enumerate(zip(self.rows, values, strict=True))]

    def absorb(self, other: "Lane") -> None:
        """Take all sequences of another lane over."""
        ours, theirs = self._as_merged(), other._as_merged()
        for layer, more in zip(ours, theirs, strict=True):
            layer.extend(more)
        self._cache, self._merged = ours, True
        if other._scores is not None:
            nothing = Scores.nothing() if self._scores is None else self._scores
            self._scores = nothing.followed_by(other._scores, len(self.rows))
        self._tokens = mx.concatenate([self._tokens, other._tokens])
        self.rows += other.rows
        self.lengths += other.lengths
        self.failed |= other.failed
        self._batch = Batch(self.rows)

    def leave(self, rows: Sequence[SamplingState]) -> None:
        """Take sequences out."""
        keep = [at for at, row in enumerate(self.rows) if row not in rows]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in keep]
        self.lengths = [self.lengths[at] for at in keep]
        self._batch = Batch(self.rows)
        if not keep:
            return
        self._tokens = self._tokens[mx.array(keep)]
        self._scores = self._scores.kept(keep) if self._scores else None
        if len(keep) == 1:
            self._cache, self._merged = caches.extract(self._cache, keep[0]), False
        else:
            for layer in self._cache:
                layer.filter(keep)

    def kept(self, row: SamplingState) -> Kept:
        """What a sequence's cache holds, its last token handed out included."""
        at = self.rows.index(row)
        if self._merged:
            return _KeptRow(self._layout, self._cache, at, self.lengths[at])
        return _KeptAlone(self._layout, self._cache)

    def _as_merged(self) -> Cache:
        return self._cache if self._merged else self._layout.merge([self._cache])

    def _advance(self, tokens: list[int]) -> None:
        for at in self._batch.constrained:
            row = self.rows[at]
            with self._watching(row) as rule:
                rule.advance(tokens[at])

    def _masked(self, logits: mx.array) -> mx.array | None:
        """The logits of the constrained rows, without what they may not say."""
        constrained = self._batch.constrained
        if not constrained:
            return None
        width = -(-logits.shape[-1] // 32)
        allowed = np.full((len(constrained), width), -1, np.int32)
        for place, at in enumerate(constrained):
            with self._watching(self.rows[at]) as rule:
                rule.fill(allowed[place])
        return constraint.apply(logits[mx.array(constrained)], allowed)

    @contextlib.contextmanager
    def _watching(self, row: SamplingState) -> Iterator[Constraint]:
        """The row's constraint; if it fails, that is noted, and is no matter of the other rows."""
        assert row.constraint is not None, "only constrained rows are asked for theirs"
        try:
            yield row.constraint
        except ConstraintFailed as failure:
            self.failed[row] = str(failure)

    def _start_evaluating(self) -> None:
        mx.async_eval(self._tokens, self._scores.arrays if self._scores else [])  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _KeptAlone:
    layout: Layout
    cache: Cache

    def pack(self, start: int, end: int) -> Packed:
        return caches.pack(self.layout, self.cache, start, end)

    def states(self) -> list[Any]:
        return caches.keep_states(self.cache)


@dataclass(frozen=True)
class _KeptRow:
    layout: Layout
    batch: Cache
    row: int
    length: int

    def pack(self, start: int, end: int) -> Packed:
        return caches.pack_row(self.layout, self.batch, self.row, self.length, start, end)

    def states(self) -> list[Any]:
        return caches.keep_states_of_row(self.batch, self.row)


def _by_row(rows: list[SamplingState], scores: Scores | None) -> dict[int, Score]:
    """The scores of those that want them, each with as many of the likeliest tokens as it wants."""
    if scores is None:
        return {}
    told = zip(scores.rows, scores.told(), strict=True)
    return {at: Score(score.logprob, score.top[: rows[at].scored]) for at, score in told}
