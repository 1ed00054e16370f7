"""Memory that this host lends to others, for ranks of their models. It counts like pinned models. Pure."""

from collections.abc import Sequence

import msgspec

from osaurusd.errors import InsufficientMemory
from osaurusd.pool.policy import describe_usage
from osaurusd.pool.state import ModelState, Waiter
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.sizes import format_bytes


class MemoryLease(msgspec.Struct, eq=False):
    """Memory for one rank.

    Attributes:
        name: the model.
        owner: the host that leads its group.
    """

    name: str
    owner: str
    nbytes: int


class MemoryLeases:
    """The current leases. A lease counts from its request; its waiter is granted once the memory is free."""

    def __init__(self) -> None:
        self._leases: list[MemoryLease] = []
        self._waiters: dict[MemoryLease, Waiter] = {}

    @property
    def lent_bytes(self) -> int:
        return sum(lease.nbytes for lease in self._leases)

    def lendable_bytes(self, limit: int, budget: int, models: Sequence[ModelState]) -> int:
        """Return the size of the largest lease that could be granted now.

        Args:
            limit: bytes of all leases together.
            budget: bytes for all models and leases.
            models: the models in memory; idle ones would be evicted.
        """
        kept = (model for model in models if model.state is not WorkerState.STOPPING and (model.pinned or model.busy))
        free = budget - self.lent_bytes - sum(model.held_bytes for model in kept)
        return max(min(limit - self.lent_bytes, free), 0)

    def refusal(
        self, lease: MemoryLease, limit: int, budget: int, models: Sequence[ModelState]
    ) -> InsufficientMemory | None:
        """Return why a lease cannot be granted, with the numbers; None if it can. Takes what `lendable_bytes` does."""
        if lease.nbytes <= self.lendable_bytes(limit, budget, models):
            return None
        needs = f"the rank needs {format_bytes(lease.nbytes)}, but this host"
        if not limit:
            return InsufficientMemory(f"{needs} lends no memory; set `distributed.lend_bytes` there")
        if lease.nbytes + self.lent_bytes > limit:
            lent = f", of which {format_bytes(self.lent_bytes)} are lent already" if self._leases else ""
            return InsufficientMemory(f"{needs} lends at most {format_bytes(limit)} (`distributed.lend_bytes`){lent}")
        free = self.lendable_bytes(limit, budget, models)
        usage = "; ".join(map(describe_usage, models))
        return InsufficientMemory(f"{needs} can free only {format_bytes(free)} of {format_bytes(budget)}: {usage}")

    def add(self, lease: MemoryLease, waiter: Waiter) -> None:
        self._leases.append(lease)
        self._waiters[lease] = waiter

    def remove(self, lease: MemoryLease) -> None:
        """End a lease; does nothing if it was refused."""
        if lease in self._leases:
            self._leases.remove(lease)
            self._waiters.pop(lease, None)

    def grant(self, free: int) -> None:
        """Grant the leases for which there is memory; `free` is what models do not hold."""
        for lease in self._leases:
            free -= lease.nbytes
            if free >= 0 and (waiter := self._waiters.pop(lease, None)):
                waiter.grant(ModelState(lease.name, WorkerState.READY))
