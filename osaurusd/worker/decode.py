"""Decoding: one step yields one token for every sequence that has joined."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from osaurusd.worker import caches, constraint
from osaurusd.worker.caches import Cache, Layout, Packed
from osaurusd.worker.constraint import Constraint, ConstraintFailed
from osaurusd.worker.likelihood import Score
from osaurusd.worker.sampling import Batch, Row, Scores

MAX_SEQUENCES = 32


@dataclass(frozen=True)
class Entrant:
    """A sequence whose prompt is processed: `cache` holds all of it, `logits` [1, vocabulary] are those after it.

    The decoder takes the cache over unless several sequences go on from it.
    """

    row: Row
    cache: Cache
    length: int
    logits: mx.array


@dataclass(frozen=True)
class Token:
    """What a step gave a sequence. The sequence's cache holds the token by then."""

    row: Row
    token: int
    score: Score | None


class Kept(Protocol):
    """Reads a sequence's cache while it decodes; only until the next step."""

    def pack(self, start: int, end: int) -> Packed: ...

    def states(self) -> list[Any]: ...


class Decoder:
    """All sequences in one forward pass a step, joining and leaving between steps.

    While the tokens of one step are handed out, the next step is under way already. A lone sequence keeps its own
    cache, which needs no mask; several share a merged one, padded to the longest.
    """

    def __init__(self, network: Any, layout: Layout) -> None:
        self._network = network
        self._layout = layout
        self._rows: list[Row] = []
        self._lengths: list[int] = []
        self._cache: Cache = []
        self._merged = False
        self._batch = Batch([])
        self._tokens: mx.array | None = None
        self._scores: Scores | None = None
        self._failed: dict[Row, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens in the caches of the sequences, in no particular order."""
        return self._lengths

    def join(self, entrants: Sequence[Entrant]) -> None:
        """Add sequences, and choose the first token of each."""
        batch = Batch([entrant.row for entrant in entrants])
        logits = mx.concatenate([entrant.logits for entrant in entrants])
        first, scores = batch.choose(logits, self._masked(batch, logits))
        self._add_caches([entrant.cache for entrant in entrants])
        offset = len(self._rows)
        self._rows += batch.rows
        self._lengths += [entrant.length for entrant in entrants]
        self._tokens = first if self._tokens is None else mx.concatenate([self._tokens, first])
        self._scores = _joined(self._scores, scores, offset)
        self._batch = Batch(self._rows)
        self._start_evaluating()

    def step(self) -> list[Token]:
        """Hand out one token for every sequence, and have the next ones computed."""
        if self._tokens is None:
            return []
        current, scores = self._tokens, self._scores
        logits = self._network(current[:, None], cache=self._cache)[:, -1, :]
        self._lengths = [length + 1 for length in self._lengths]
        if self._batch.constrained:
            # What may be said next depends on what is said now: the masks are made while the pass is computed. An end
            # token is no matter of the constraint, and its sequence is taken out before it could say anything else.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self._advance(current.tolist())  # type: ignore[arg-type]
        self._tokens, self._scores = self._batch.choose(logits, self._masked(self._batch, logits))
        self._start_evaluating()
        values: list[int] = current.tolist()  # type: ignore[assignment]
        told = _by_row(self._rows, scores)
        return [Token(row, value, told.get(at)) for at, (row, value) in enumerate(zip(self._rows, values, strict=True))]

    def take_failed(self) -> dict[Row, str]:
        """The sequences whose constraint cannot go on, and why: nothing further that they say is to be believed."""
        failed, self._failed = self._failed, {}
        return failed

    def kept(self, row: Row) -> Kept:
        """What a sequence's cache holds, its last token handed out included."""
        at = self._rows.index(row)
        if self._merged:
            return _KeptRow(self._layout, self._cache, at, self._lengths[at])
        return _KeptAlone(self._layout, self._cache)

    def leave(self, rows: Sequence[Row]) -> None:
        """Take sequences out."""
        keep = [at for at, row in enumerate(self._rows) if row not in rows]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[at] for at in keep]
        self._lengths = [self._lengths[at] for at in keep]
        self._batch = Batch(self._rows)
        if not keep:
            self._cache, self._merged, self._tokens, self._scores = [], False, None, None
            return
        assert self._tokens is not None, "there are sequences"
        self._tokens = self._tokens[mx.array(keep)]
        self._scores = _kept_scores(self._scores, keep)
        self._keep_caches(keep)

    def _advance(self, tokens: list[int]) -> None:
        for at in self._batch.constrained:
            row = self._rows[at]
            with self._watching(row) as rule:
                rule.advance(tokens[at])

    def _masked(self, batch: Batch, logits: mx.array) -> mx.array | None:
        """The logits of the constrained rows, without what they may not say."""
        if not batch.constrained:
            return None
        width = -(-logits.shape[-1] // 32)
        allowed = np.full((len(batch.constrained), width), -1, np.int32)
        for place, at in enumerate(batch.constrained):
            with self._watching(batch.rows[at]) as rule:
                rule.fill(allowed[place])
        return constraint.apply(logits[mx.array(batch.constrained)], allowed)

    @contextlib.contextmanager
    def _watching(self, row: Row) -> Iterator[Constraint]:
        """The row's constraint; if it fails, that is noted, and is no matter of the other rows."""
        assert row.constraint is not None, "only constrained rows are asked for theirs"
        try:
            yield row.constraint
        except ConstraintFailed as failure:
            self._failed[row] = str(failure)

    def _start_evaluating(self) -> None:
        mx.async_eval(self._tokens, self._scores.arrays if self._scores else [])  # type: ignore[no-untyped-call]

    def _add_caches(self, joining: list[Cache]) -> None:
        if not self._rows and len(joining) == 1:
            self._cache, self._merged = joining[0], False
            return
        if self._rows and not self._merged:
            joining = [self._cache, *joining]
        merged = [layers[0].merge(list(layers)) for layers in zip(*joining, strict=True)]
        if self._merged:
            for layer, more in zip(self._cache, merged, strict=True):
                layer.extend(more)
        else:
            self._cache, self._merged = merged, True

    def _keep_caches(self, keep: list[int]) -> None:
        if len(keep) == 1:
            self._cache, self._merged = caches.extract(self._cache, keep[0]), False
        else:
            for layer in self._cache:
                layer.filter(keep)


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


def _by_row(rows: list[Row], scores: Scores | None) -> dict[int, Score]:
    """The scores of those that want them, each with as many of the likeliest tokens as it wants."""
    if scores is None:
        return {}
    told = zip(scores.rows, scores.told(), strict=True)
    return {at: Score(score.logprob, score.top[: rows[at].scored]) for at, score in told}


def _joined(scores: Scores | None, more: Scores | None, offset: int) -> Scores | None:
    """Scores of the rows there were, and of those that come after the first `offset`."""
    if more is None:
        return scores
    rows = [row + offset for row in more.rows]
    if scores is None:
        return Scores(rows, more.chosen, more.likeliest, more.logprobs)
    most = max(scores.likeliest.shape[1], more.likeliest.shape[1])
    return Scores(
        scores.rows + rows,
        mx.concatenate([scores.chosen, more.chosen]),
        mx.concatenate([_widened(scores.likeliest, most, 0), _widened(more.likeliest, most, 0)]),
        mx.concatenate([_widened(scores.logprobs, most, -np.inf), _widened(more.logprobs, most, -np.inf)]),
    )


def _widened(columns: mx.array, width: int, filling: float) -> mx.array:
    return mx.pad(columns, [(0, 0), (0, width - columns.shape[1])], constant_values=mx.array(filling, columns.dtype))


def _kept_scores(scores: Scores | None, keep: list[int]) -> Scores | None:
    if scores is None:
        return None
    places = [place for place, row in enumerate(scores.rows) if row in keep]
    if not places:
        return None
    chosen = mx.array(places)
    rows = [keep.index(scores.rows[place]) for place in places]
    return Scores(rows, scores.chosen[chosen], scores.likeliest[chosen], scores.logprobs[chosen])
