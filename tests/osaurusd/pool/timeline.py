"""Driving a scheduler by hand: its effects are recorded, and the time is what the test says."""

import functools
import itertools

from osaurusd.errors import WorkerCrashed
from osaurusd.pool.resident import Demand, Rules
from osaurusd.pool.scheduler import Scheduler

A, B, C, D = "org/a", "org/b", "org/c", "org/d"
CRASH = WorkerCrashed("it crashed")

_EVENTS = frozenset(
    ["tick", "configure", "keep", "abandoned", "released", "ready", "reserved", "exited", "pin", "unpin", "shut_down"]
)


class Effects:
    """Records what the scheduler does, in order."""

    def __init__(self):
        self.calls = []
        self.reasons = []
        self.causes = []
        self.residents = []
        self.limits = []

    def start(self, resident):
        self.calls.append(("start", resident.key))
        self.residents.append(resident)

    def stop(self, resident, reason, cause):
        self.calls.append(("stop", resident.key))
        self.reasons.append(reason)
        self.causes.append(cause)

    def limit(self, resident):
        self.limits.append((resident.key, resident.limit_bytes))

    @property
    def last(self):
        """The resident that was started last."""
        return self.residents[-1]


class Ticket:
    """One who waits, and what came of it."""

    turns = itertools.count()

    def __init__(self, *, gone=False):
        self.gone = gone
        self.resident = None
        self.error = None
        self.turn = None

    def grant(self, resident):
        assert self.turn is None, "settled twice"
        self.turn = next(Ticket.turns)
        if self.gone:
            return False
        self.resident = resident
        return True

    def refuse(self, error):
        assert self.turn is None, "settled twice"
        self.turn = next(Ticket.turns)
        self.error = error

    @property
    def settled(self):
        return self.turn is not None


class Timeline:
    """A scheduler whose events happen `now`; `sizes` and `keep_alive` are what models need and how long they stay."""

    def __init__(self, **rules):
        self.effects = Effects()
        self.now = 0.0
        self.sizes = {}
        self.keep_alive = None
        self.scheduler = Scheduler(self.effects, Rules(**rules))

    def __getattr__(self, name):
        found = getattr(self.scheduler, name)
        return functools.partial(self._happen, found) if name in _EVENTS else found

    def _happen(self, event, *arguments, **options):
        return event(*arguments, now=self.now, **options)

    def pass_time(self, seconds):
        """Let time pass as the pool does: with a tick whenever one is due."""
        end = self.now + seconds
        while (due := self.scheduler.due) is not None and due <= end:
            self.now = max(due, self.now)
            self.tick()
            assert self.scheduler.due is None or self.scheduler.due > self.now, "time stands still"
        self.now = end

    def demand(self, key):
        return Demand(key, self.sizes.get(key, 0), self.keep_alive)

    def ask(self, key=A, *, insist=False, **options):
        """Ask for a model with a new ticket."""
        ticket = Ticket(**options)
        self.scheduler.request(self.demand(key), ticket, self.now, insist=insist)
        return ticket

    def unload(self, key=A, *, force=False):
        """Unload a model with a new ticket."""
        ticket = Ticket()
        self.scheduler.unload(key, ticket, self.now, force=force)
        return ticket

    def load(self, key=A):
        """A model that is ready and that nobody uses."""
        ticket = self.ask(key)
        self.ready(self.resident(key))
        self.released(ticket.resident)
        return ticket.resident

    def resident(self, key):
        (found,) = [resident for resident in self.scheduler.residents if resident.key == key]
        return found

    def states(self):
        return {resident.key: resident.state.value for resident in self.scheduler.residents}
