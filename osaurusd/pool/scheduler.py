"""Which models are resident and who may use them: the only writer of that state. No I/O, no clock, no waiting.

Events come in as method calls; what follows from them goes out through `Effects`. A model's life:

    absent --request--> starting --ready--> ready --unload--> stopping --exited--> absent
                           |                  |
                           +------exited------+--> absent; with requests waiting after a stop, starting again
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from osaurusd.errors import Busy, ModelUnloaded, OsaurusError, QueueFull, ShuttingDown
from osaurusd.wire.admin import WorkerState


class Ticket(Protocol):
    """One who waits: for a model to be usable, or for it to be gone."""

    def grant(self, resident: "Resident") -> bool:
        """Let the holder go on; False if nobody is there any more."""

    def refuse(self, error: OsaurusError) -> None: ...


@dataclass(eq=False)
class Resident:
    """A model that has a worker process, or is to get one or lose one."""

    key: str
    state: WorkerState = WorkerState.STARTING
    in_flight: int = 0
    waiting: deque[Ticket] = field(default_factory=deque)
    unloading: list[Ticket] = field(default_factory=list)


class Effects(Protocol):
    """What the scheduler has done; none of these may call back before the event that caused it is over."""

    def start(self, resident: Resident) -> None:
        """Bring up a worker; answer with `ready` or `exited`."""

    def stop(self, resident: Resident, reason: OsaurusError) -> None:
        """End the worker, whatever it is doing, and fail its requests with `reason`; answer with `exited`."""


class Scheduler:
    """Decides, performs nothing. Loads are single-flight: all who want a model that is starting wait together.

    Args:
        effects: performs what is decided.
        max_waiting: how many may wait for one model; more are refused.
    """

    def __init__(self, effects: Effects, max_waiting: int = 64) -> None:
        self.max_waiting = max_waiting
        self._effects = effects
        self._residents: dict[str, Resident] = {}
        self._shutting_down = False

    @property
    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    def request(self, key: str, ticket: Ticket) -> None:
        """Somebody wants to use the model `key`; a granted ticket is in flight until `released`."""
        if self._shutting_down:
            ticket.refuse(ShuttingDown("the daemon is shutting down"))
            return
        resident = self._residents.get(key)
        if resident is None:
            resident = self._residents[key] = Resident(key)
            resident.waiting.append(ticket)
            self._effects.start(resident)
        elif resident.state is WorkerState.READY:
            self._grant(resident, ticket)
        elif len(resident.waiting) >= self.max_waiting:
            ticket.refuse(QueueFull(f"{self.max_waiting} requests are waiting for `{key}` already; try again later"))
        else:
            resident.waiting.append(ticket)

    def abandoned(self, ticket: Ticket) -> None:
        """The holder went away before it was granted. A load under way goes on: somebody will want it."""
        for resident in self._residents.values():
            if ticket in resident.waiting:
                resident.waiting.remove(ticket)

    def released(self, resident: Resident) -> None:
        """A granted request has ended, in whatever way."""
        resident.in_flight -= 1

    def ready(self, resident: Resident) -> None:
        """The worker can take requests."""
        if resident.state is not WorkerState.STARTING:
            return  # told to stop meanwhile
        resident.state = WorkerState.READY
        while resident.waiting:
            self._grant(resident, resident.waiting.popleft())

    def exited(self, resident: Resident, error: OsaurusError) -> None:
        """The worker is gone; `error` says why. Requests in flight fail by themselves when their frames end."""
        del self._residents[resident.key]
        for ticket in resident.unloading:
            ticket.grant(resident)
        if resident.state is WorkerState.STOPPING:
            # Whoever asked while it was stopping wants the model all the same.
            for ticket in resident.waiting:
                self.request(resident.key, ticket)
            return
        for ticket in resident.waiting:
            ticket.refuse(error)

    def unload(self, key: str, ticket: Ticket, *, force: bool = False) -> None:
        """End the model's worker; the ticket is granted once it is gone. One that is not resident is gone already.

        A model in use is refused unless `force`; then its requests fail.
        """
        resident = self._residents.get(key)
        if resident is None:
            ticket.grant(Resident(key, WorkerState.STOPPING))
            return
        users = resident.in_flight + len(resident.waiting)
        if users and not force and resident.state is not WorkerState.STOPPING:
            ticket.refuse(Busy(f"`{key}` is serving {users} request(s); wait for them or use --force"))
            return
        resident.unloading.append(ticket)
        self._stop(resident, ModelUnloaded("the model was unloaded before it could answer"))

    def shut_down(self) -> None:
        """Refuse all who wait and all who come, and stop every worker."""
        self._shutting_down = True
        for resident in self.residents:
            self._stop(resident, ShuttingDown("the daemon is shutting down"))

    def _stop(self, resident: Resident, reason: OsaurusError) -> None:
        if resident.state is WorkerState.STOPPING and not self._shutting_down:
            return
        while resident.waiting:
            resident.waiting.popleft().refuse(reason)
        if resident.state is not WorkerState.STOPPING:
            resident.state = WorkerState.STOPPING
            self._effects.stop(resident, reason)

    def _grant(self, resident: Resident, ticket: Ticket) -> None:
        # Counted only when somebody took it, or the model could never be unloaded again.
        if ticket.grant(resident):
            resident.in_flight += 1
