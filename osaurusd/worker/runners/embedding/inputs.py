"""Token sequences, and batches of them as a network receives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class TokenSequence:
    """An encoded input.

    Attributes:
        tokens: the token ids, special ones included.
        types: 0 for each token of the first text of a pair, 1 for the second; None for a single text.
        pooled_from: the number of leading tokens that mean pooling skips.
    """

    tokens: Sequence[int]
    types: Sequence[int] | None = None
    pooled_from: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


class Batch:
    """Sequences that share a forward pass, padded at the end to the same length.

    Attributes:
        tokens: token ids, of shape (sequences, tokens); padding has id 0.
        types: token types of the same shape, or None.
    """

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._lengths = np.array([len(each) for each in sequences], dtype=np.int32)
        self._pooled_from = np.array([each.pooled_from for each in sequences], dtype=np.int32)
        self.tokens = mx.array(self._pad([each.tokens for each in sequences]))
        typed = any(each.types for each in sequences)
        self.types = mx.array(self._pad([each.types or () for each in sequences])) if typed else None

    @cached_property
    def attention_mask(self) -> mx.array | None:
        """Which tokens may be attended to, of shape (sequences, 1, 1, tokens); None if there is no padding."""
        if self._lengths.min() == self._lengths.max():
            return None
        return mx.array(self._positions < self._lengths[:, None])[:, None, None]

    @cached_property
    def pooled(self) -> mx.array:
        """Which tokens are pooled, of shape (sequences, tokens, 1)."""
        positions = self._positions
        return mx.array((positions < self._lengths[:, None]) & (positions >= self._pooled_from[:, None]))[..., None]

    @cached_property
    def last(self) -> mx.array:
        """The position of the last token of each sequence."""
        return mx.array(self._lengths - 1)

    def mean(self, hidden: mx.array) -> mx.array:
        """Return the mean of the vectors of the pooled tokens of each sequence."""
        counts = mx.maximum(self.pooled.sum(axis=1), 1)
        return mx.where(self.pooled, hidden, 0).sum(axis=1) / counts

    @property
    def _positions(self) -> np.ndarray:
        return np.arange(self._lengths.max(), dtype=np.int32)[None]

    def _pad(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        padded = np.zeros((len(rows), int(self._lengths.max())), dtype=np.int32)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return padded
