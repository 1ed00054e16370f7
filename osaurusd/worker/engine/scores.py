"""Log-probabilities of what was chosen and of what might have been, as arrays until they are told."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.worker.frontend.logprobs import Score

_LEAST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the rows that want them: of the chosen token [R], and of the likeliest, [R, most] each."""

    rows: list[int]
    chosen: mx.array
    likeliest: mx.array
    logprobs: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        return [self.chosen, self.likeliest, self.logprobs]

    def told(self) -> list[Score]:
        """The same as numbers, one score a row, likeliest first."""
        columns: list[Any] = [array.tolist() for array in self.arrays]
        return [
            Score(chosen, sorted(zip(ids, logprobs, strict=True), key=lambda pair: -pair[1]))
            for chosen, ids, logprobs in zip(*columns, strict=True)
        ]

    @classmethod
    def nothing(cls) -> "Scores":
        """Of a batch in which nobody wants any."""
        return cls([], mx.zeros((0,)), mx.zeros((0, 0), mx.uint32), mx.zeros((0, 0)))

    def kept(self, keep: list[int]) -> "Scores | None":
        """The scores of the rows at the places `keep`, which are all that stay in the batch."""
        places = [place for place, row in enumerate(self.rows) if row in keep]
        if not places:
            return None
        chosen = mx.array(places)
        rows = [keep.index(self.rows[place]) for place in places]
        return Scores(rows, self.chosen[chosen], self.likeliest[chosen], self.logprobs[chosen])

    def followed_by(self, more: "Scores", offset: int) -> "Scores":
        """These and, for the rows from `offset` on, `more`."""
        most = max(self.likeliest.shape[1], more.likeliest.shape[1])
        return Scores(
            self.rows + [row + offset for row in more.rows],
            mx.concatenate([self.chosen, more.chosen]),
            mx.concatenate([_widened(self.likeliest, most, 0), _widened(more.likeliest, most, 0)]),
            mx.concatenate([_widened(self.logprobs, most, -np.inf), _widened(more.logprobs, most, -np.inf)]),
        )


def score(logits: mx.array, tokens: mx.array, most: int, rows: list[int]) -> Scores:
    """Log-probabilities of `tokens` [R] and of the `most` likeliest tokens under `logits` [R, vocabulary].

    All are finite, for JSON has no other numbers: what a model rules out, or cannot say because its numbers overflow,
    is as unlikely as a number can be.
    """
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    most = min(most, logits.shape[-1] - 1)
    likeliest = mx.argpartition(-logprobs, kth=max(most - 1, 0), axis=-1)[:, :most]
    return Scores(rows, _finite(chosen), likeliest, _finite(mx.take_along_axis(logprobs, likeliest, axis=-1)))


def _finite(logprobs: mx.array) -> mx.array:
    return mx.nan_to_num(logprobs, nan=_LEAST, neginf=_LEAST)


def _widened(columns: mx.array, width: int, filling: float) -> mx.array:
    return mx.pad(columns, [(0, 0), (0, width - columns.shape[1])], constant_values=mx.array(filling, columns.dtype))
