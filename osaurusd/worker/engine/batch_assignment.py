"""The assignment of decoding sequences to batches."""

from collections.abc import Collection

from osaurusd.worker.engine.request import SequenceId


class BatchAssignment:
    """Assigns sequences to decode batches.

    A forward pass reads all weights, but every sequence in it is padded to the longest one. Two batches are merged if
    the padding costs less than a pass.

    Args:
        padding_per_pass: how many tokens of padding cost as much as a pass.
        batchable: whether sequences can share a pass at all.
    """

    def __init__(self, padding_per_pass: int, *, batchable: bool) -> None:
        self._padding_per_pass = padding_per_pass
        self._batchable = batchable
        self._lengths: dict[SequenceId, int] = {}
        self.batches: list[list[SequenceId]] = []

    def add(self, lengths: dict[SequenceId, int]) -> None:
        """Add sequences of the given lengths, which already share a batch."""
        self._lengths |= lengths
        self._place(list(lengths))

    def remove(self, ids: Collection[SequenceId]) -> None:
        ids = [id_ for id_ in ids if id_ in self._lengths]
        if not ids:
            return
        for id_ in ids:
            del self._lengths[id_]
        batches, self.batches = self.batches, []
        # With fewer sequences padding costs less, so batches that were separate may be merged now.
        for batch in batches:
            if remaining := [id_ for id_ in batch if id_ in self._lengths]:
                self._place(remaining)

    def advance(self, tokens: dict[SequenceId, int]) -> None:
        """Count the tokens that a step has yielded."""
        for id_, count in tokens.items():
            self._lengths[id_] += count

    def _place(self, batch: list[SequenceId]) -> None:
        paddings = [(self._padding(other, batch), other) for other in self.batches] if self._batchable else []
        padding, best = min(paddings, key=lambda pair: pair[0], default=(0, None))
        if best is not None and padding <= self._padding_per_pass:
            best += batch
        else:
            self.batches.append(batch)

    def _padding(self, batch: list[SequenceId], other: list[SequenceId]) -> int:
        """Return how many more tokens of padding two batches have together than separately."""
        longest, other_longest = (max(self._lengths[id_] for id_ in ids) for ids in (batch, other))
        together = max(longest, other_longest) * (len(batch) + len(other))
        return together - longest * len(batch) - other_longest * len(other)
