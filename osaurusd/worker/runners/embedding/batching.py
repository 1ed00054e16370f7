"""Which inputs share a forward pass. Decides without touching MLX."""

from collections.abc import Sequence
from typing import NamedTuple


class Pending(NamedTuple):
    """An input that waits for its pass, ordered by length."""

    length: int
    request: int
    number: int


class BatchQueue:
    """Inputs of all requests. Sequences of similar length share a pass, whichever requests they belong to.

    Requests take turns: the longest input of the one whose turn it is determines the length of a pass, and shorter
    inputs of all requests fill it. So a large request does not delay a small one for longer than a few passes.

    Args:
        budget: the maximum number of tokens in a pass, padding included. A longer input has a pass for itself.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._turns: dict[int, int] = {}
        self._pending: list[Pending] = []

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, request: int, lengths: Sequence[int]) -> None:
        """Queue the inputs of a request."""
        self._turns[request] = len(lengths)
        self._pending += [Pending(length, request, number) for number, length in enumerate(lengths)]
        self._pending.sort()

    def remove(self, request: int) -> None:
        """Drop the pending inputs of a request."""
        self._turns.pop(request, None)
        self._pending = [each for each in self._pending if each.request != request]

    def clear(self) -> None:
        self._turns.clear()
        self._pending.clear()

    def next_batch(self) -> list[Pending]:
        """Take the inputs of the next pass out of the queue."""
        request = next(iter(self._turns))
        end = max(number for number, each in enumerate(self._pending) if each.request == request) + 1
        length = self._pending[end - 1].length
        begin = max(end - max(self.budget // length, 1), 0)
        batch = self._pending[begin:end]
        del self._pending[begin:end]
        self._end_turn(request, batch)
        return batch

    def _end_turn(self, request: int, batch: Sequence[Pending]) -> None:
        for each in batch:
            self._turns[each.request] -= 1
        left = self._turns.pop(request)
        if left:
            self._turns[request] = left
        self._turns = {number: count for number, count in self._turns.items() if count}
