"""Which models are resident and who may use them: the only writer of that state. No I/O, no clock, no waiting.

Events come in as method calls, with the time at which they happened; what follows from them goes out through `Effects`.
Nothing happens between events: `due` says when a `tick` is wanted. A model's life:

    absent --request--> queued --room--> starting --ready--> ready --unload, idle, room--> stopping --exited--> absent
                                            |                  |
                                            +------exited------+--> failed --request after the back-off--> queued

Models that need room stand in line by their first request. The first one gets room: idle models are ended for it, and
those in use, once they have had their time, get no further requests until it is in or has been refused. Those behind it
start if they take nothing away from it.
"""

import itertools
from collections import deque

from osaurusd.errors import Busy, ModelUnloaded, OsaurusError, QueueFull, ShuttingDown
from osaurusd.pool import policy, refusal
from osaurusd.pool.policy import Holding, Plan
from osaurusd.pool.resident import Cause, Demand, Effects, Failure, Resident, Rules, Ticket
from osaurusd.wire.admin import IN_MEMORY, WorkerState

MOST_BACKOFF_SECONDS = 60.0
"""The longest that a model which dies again and again is left alone; one that lived as long begins anew."""


class Scheduler:
    """Decides, performs nothing. Loads are single-flight: all who want a model that is starting wait together."""

    def __init__(self, effects: Effects, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._effects = effects
        self._residents: dict[str, Resident] = {}
        self._failures: dict[str, Failure] = {}
        self._pins: dict[str, Demand] = {}
        # Pinned ones that the user has unloaded all the same: they stay away until somebody asks for them.
        self._away: set[str] = set()
        # What workers said that their models need, which is better than any estimate.
        self._figures: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._alarms: list[float] = []
        self._shared: object = None
        self._shutting_down = False

    @property
    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    @property
    def failures(self) -> dict[str, Failure]:
        """How workers have ended by themselves, by model; one that was ended in order since is not here."""
        return dict(self._failures)

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(self._pins)

    @property
    def rules(self) -> Rules:
        return self._rules

    @property
    def used_bytes(self) -> int:
        """What models hold of the budget."""
        return sum(resident.holds_bytes for resident in self._held())

    @property
    def due(self) -> float | None:
        """When to `tick` if nothing happens before."""
        return min(self._alarms, default=None)

    def needs(self, demand: Demand) -> int:
        """What the model is known or thought to need."""
        return self._figures.get(demand.key, demand.needs_bytes)

    # Events

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._settle(now)

    def configure(self, rules: Rules, now: float) -> None:
        """Go by other rules from now on."""
        self._rules = rules
        self._settle(now)

    def request(self, demand: Demand, ticket: Ticket, now: float, *, insist: bool = False) -> None:
        """Somebody wants to use a model; a granted ticket is in flight until `released`.

        A model whose worker died lately again and again is refused until its back-off is over, unless they `insist`.
        """
        if self._shutting_down:
            ticket.refuse(ShuttingDown("the daemon is shutting down"))
            return
        resident = self._residents.get(demand.key)
        if resident is None:
            failure = self._failures.get(demand.key)
            if failure is not None and now < failure.retry_at and not insist:
                ticket.refuse(refusal.backing_off(failure.error, failure.retry_at - now))
                return
            resident = self._enqueue(demand)
        if resident.state is WorkerState.READY and not resident.closing:
            self._grant(resident, ticket, now)
        elif len(resident.waiting) >= self._rules.max_waiting:
            ticket.refuse(QueueFull(f"{len(resident.waiting)} requests are waiting for `{demand.key}` already"))
        else:
            self._wait(resident, ticket)
        self._settle(now)

    def keep(self, key: str, keep_alive: float | None, now: float, *, asked: bool = True) -> None:
        """Have a resident model stay this long once idle; what was `asked` for yields only to what is asked for."""
        resident = self._residents.get(key)
        if resident is not None and (asked or not resident.keep_alive_asked):
            resident.keep_alive, resident.keep_alive_asked = keep_alive, asked
            self._settle(now)

    def abandoned(self, ticket: Ticket, now: float) -> None:
        """The holder went away before it was granted. A load under way goes on: somebody will want it."""
        for resident in self.residents:
            kept = [waiter for waiter in resident.waiting if waiter[1] is not ticket]
            if len(kept) == len(resident.waiting):
                continue
            resident.waiting = deque(kept)
            if resident.state is WorkerState.QUEUED and not kept and resident.key not in self._pins:
                del self._residents[resident.key]
        self._settle(now)

    def released(self, resident: Resident, now: float, *, served: bool = True) -> None:
        """A granted request has ended, in whatever way; not `served` if it only wanted the model to be there."""
        resident.in_flight -= 1
        resident.last_used = now
        resident.served |= served
        self._settle(now)

    def ready(self, resident: Resident, now: float, needs_bytes: int | None = None) -> None:
        """The worker can take requests; it says what its model needs."""
        if needs_bytes is not None:
            self._figures[resident.key] = resident.needs_bytes = needs_bytes
        if resident.state is not WorkerState.STARTING:
            return  # told to stop meanwhile
        resident.state = WorkerState.READY
        resident.ready_at = resident.last_used = now
        self._grant_all(resident, now)
        self._settle(now)

    def reserved(self, resident: Resident, nbytes: int, now: float) -> None:
        """The worker tells what it and its requests may grow to."""
        shrunk = nbytes < resident.reserved_bytes
        resident.reserved_bytes = nbytes
        if shrunk:
            self._settle(now)

    def exited(self, resident: Resident, error: OsaurusError, now: float) -> None:
        """The worker is gone; `error` says why. Requests in flight fail by themselves when their frames end."""
        del self._residents[resident.key]
        for ticket in resident.unloading:
            ticket.grant(resident)
        if resident.state is WorkerState.STOPPING:
            self._failures.pop(resident.key, None)
            if resident.waiting:
                # Whoever asked while it was stopping, or had to let another model pass, wants it all the same.
                again = self._enqueue(Demand(resident.key, resident.needs_bytes, resident.keep_alive))
                again.waiting, again.turn = resident.waiting, resident.waiting[0][0]
        else:
            self._note_death(resident, error, now)
            self._refuse_all(resident, error)
        self._settle(now)

    def unload(self, key: str, ticket: Ticket, now: float, *, force: bool = False) -> None:
        """End the model's worker; the ticket is granted once it is gone. One that is not resident is gone already.

        A model in use, and a pinned one, is refused unless `force`; then its requests fail.
        """
        resident = self._residents.get(key)
        if resident is None:
            self._failures.pop(key, None)
            ticket.grant(Resident(key, WorkerState.STOPPING))
            return
        users = resident.in_flight + len(resident.waiting)
        if resident.state is not WorkerState.STOPPING and not force:
            if users:
                ticket.refuse(Busy(f"`{key}` is serving {users} request(s); wait for them or use --force"))
                return
            if key in self._pins:
                ticket.refuse(Busy(f"`{key}` is pinned; --force unloads it until it is asked for again"))
                return
        if key in self._pins:
            self._away.add(key)
        resident.unloading.append(ticket)
        self._stop(resident, ModelUnloaded("the model was unloaded before it could answer"), Cause.UNLOAD)
        self._settle(now)

    def pin(self, demand: Demand, now: float, *, check: bool = True) -> None:
        """Never evict this model nor let it idle out, and bring it back if its worker dies.

        Raises:
            InsufficientMemory: with it, the pinned models are more than the budget, and `check` is wanted.
        """
        pins = {**self._pins, demand.key: demand}
        needs = {key: self.needs(pinned) for key, pinned in pins.items()}
        if check and sum(needs.values()) > self._rules.budget_bytes:
            raise refusal.pins_exceed(needs, self._rules.budget_bytes)
        self._pins = pins
        self._settle(now)

    def unpin(self, key: str, now: float) -> None:
        """Treat this model like any other again."""
        self._pins.pop(key, None)
        self._away.discard(key)
        self._settle(now)

    def shut_down(self, now: float) -> None:
        """Refuse all who wait and all who come, and stop every worker."""
        self._shutting_down = True
        for resident in self.residents:
            self._stop(resident, ShuttingDown("the daemon is shutting down"), Cause.SHUTDOWN)
        self._settle(now)

    # What follows

    def _settle(self, now: float) -> None:
        """Bring about what the state asks for, and note when time alone will change that."""
        self._alarms = []
        if self._shutting_down:
            return
        self._end_idle(now)
        self._get_within_budget()
        self._bring_pins_back(now)
        starting = self._fill(now)
        self._share(starting)
        for resident in starting:
            self._effects.start(resident)

    def _end_idle(self, now: float) -> None:
        for resident in self.residents:
            until = resident.idle_until
            if until is None or resident.key in self._pins:
                continue
            if now >= until:
                reason = ModelUnloaded(f"the model was not used for {resident.keep_alive:g} s")
                self._stop(resident, reason, Cause.IDLE)
            else:
                self._alarms.append(until)

    def _get_within_budget(self) -> None:
        """After the budget shrank, or a model turned out larger than it was thought to be."""
        floors = [self._holding(resident, resident.needs_bytes) for resident in self._held()]
        self._evict(policy.make_room(self._rules.budget_bytes, floors, 0), "the memory budget")

    def _bring_pins_back(self, now: float) -> None:
        for key, demand in self._pins.items():
            failure = self._failures.get(key)
            if failure is None or key in self._residents or key in self._away:
                continue
            if now >= failure.retry_at:
                self._enqueue(demand)
            else:
                self._alarms.append(failure.retry_at)

    def _fill(self, now: float) -> list[Resident]:
        """Start those who stand in line as far as there is room, and make room for the first of the others."""
        starting: list[Resident] = []
        claimed, closing = 0, set[str]()
        going = {resident.key for resident in self._in(WorkerState.STOPPING)}
        queue = sorted(self._in(WorkerState.QUEUED), key=lambda resident: resident.turn)
        for resident in queue:
            plan = policy.make_room(self._rules.budget_bytes, map(self._holding, self._held()), resident.needs_bytes)
            if claimed:
                resident.blocked_since = None  # its turn to have room made for it has not come
            if self._can_never_fit(resident) or self._has_waited_enough(resident, now):
                self._give_up(resident, now)
            elif not claimed:
                going |= {*plan.evict, *plan.drain}
                closing |= self._closing(resident, plan, now)
                if not plan.drain:
                    self._evict(plan, f"`{resident.key}`")
            if resident.key not in self._residents:
                continue
            if self._fits(resident, claimed, going):
                resident.state, resident.last_used = WorkerState.STARTING, now
                starting.append(resident)
            else:
                claimed += resident.needs_bytes
        self._close(closing, now)
        return starting

    def _fits(self, resident: Resident, claimed: int, going: set[str]) -> bool:
        """Whether there is room now, and will be beside those before it in line once those who are `going` are gone."""
        held = self._held()
        now = sum(other.holds_bytes for other in held)
        then = claimed + sum(other.holds_bytes for other in held if other.key not in going)
        return resident.needs_bytes + max(now, then) <= self._rules.budget_bytes

    def _can_never_fit(self, resident: Resident) -> bool:
        """Whether it does not fit even beside the pinned models alone, with none of them in use."""
        pinned = (
            other for other in self._held() if other.key in self._pins and other.state is not WorkerState.STOPPING
        )
        return resident.needs_bytes + sum(other.needs_bytes for other in pinned) > self._rules.budget_bytes

    def _has_waited_enough(self, resident: Resident, now: float) -> bool:
        if resident.blocked_since is None:
            return False
        until = resident.blocked_since + self._rules.wait_seconds
        if now < until:
            self._alarms.append(until)
        return now >= until

    def _closing(self, resident: Resident, plan: Plan, now: float) -> set[str]:
        """Those in use that take no further requests for the sake of `resident`: those that have had their time."""
        ends = {key: self._residents[key].ready_at for key in plan.drain}
        over = {key for key, at in ends.items() if at is not None and now >= at + self._rules.min_residency_seconds}
        later = [
            at + self._rules.min_residency_seconds for key, at in ends.items() if key not in over and at is not None
        ]
        self._alarms += later
        if len(over) < len(ends) or (plan.possible and not ends):
            resident.blocked_since = None
        elif resident.blocked_since is None:
            resident.blocked_since = now
            self._alarms.append(now + self._rules.wait_seconds)
        return over

    def _close(self, closing: set[str], now: float) -> None:
        for resident in self._in(WorkerState.READY):
            resident.closing = resident.key in closing
            if not resident.closing:
                self._grant_all(resident, now)

    def _give_up(self, resident: Resident, now: float) -> None:
        held = [self._account(other) for other in self._held()]
        budget = self._rules.budget_bytes
        ever = not self._can_never_fit(resident)
        error = refusal.no_room(resident.key, resident.needs_bytes, budget, held, ever=ever)
        del self._residents[resident.key]
        self._refuse_all(resident, error)
        for ticket in resident.unloading:
            ticket.grant(resident)
        if resident.key in self._pins:
            # As if it had died: it is tried again later, and less and less often.
            self._note_death(resident, error, now, least=1.0)
            self._alarms.append(self._failures[resident.key].retry_at)

    def _account(self, resident: Resident) -> refusal.Holder:
        pinned = resident.key in self._pins
        return refusal.Holder(resident.key, resident.holds_bytes, resident.in_flight, pinned=pinned)

    def _evict(self, plan: Plan, whose: str) -> None:
        for key in plan.evict:
            self._stop(self._residents[key], ModelUnloaded(f"the model made room for {whose}"), Cause.ROOM)

    def _share(self, starting: list[Resident]) -> None:
        """Divide the budget anew if it, or the models in it, have changed."""
        holding = self._in(WorkerState.STARTING, WorkerState.READY)
        leaving = sum(resident.holds_bytes for resident in self._in(WorkerState.STOPPING))
        key = (self._rules.budget_bytes, leaving, [(resident, resident.needs_bytes) for resident in holding])
        if key == self._shared:
            return
        self._shared = key
        needs = {resident.key: resident.holds_bytes for resident in holding}
        for name, limit in policy.shares(self._rules.budget_bytes - leaving, needs).items():
            resident = self._residents[name]
            changed, resident.limit_bytes = limit != resident.limit_bytes, limit
            if changed and resident not in starting:
                self._effects.limit(resident)

    def _note_death(self, resident: Resident, error: OsaurusError, now: float, least: float = 0.0) -> None:
        before = self._failures.get(resident.key)
        lived = 0.0 if resident.ready_at is None else now - resident.ready_at
        deaths = 1 if before is None or lived >= MOST_BACKOFF_SECONDS else before.deaths + 1
        wait = min(2.0 ** (deaths - 2), MOST_BACKOFF_SECONDS) if deaths > 1 else 0.0
        self._failures[resident.key] = Failure(error, deaths, now + max(wait, least))

    def _enqueue(self, demand: Demand) -> Resident:
        self._away.discard(demand.key)
        resident = Resident(demand.key, needs_bytes=self.needs(demand), keep_alive=demand.keep_alive)
        resident.turn = next(self._turns)
        self._residents[demand.key] = resident
        return resident

    def _wait(self, resident: Resident, ticket: Ticket) -> None:
        resident.waiting.append((next(self._turns), ticket))

    def _stop(self, resident: Resident, reason: OsaurusError, cause: Cause) -> None:
        if cause in (Cause.UNLOAD, Cause.SHUTDOWN) and (
            resident.state is not WorkerState.STOPPING or self._shutting_down
        ):
            self._refuse_all(resident, reason)
        if resident.state is WorkerState.QUEUED:
            del self._residents[resident.key]
            for ticket in resident.unloading:
                ticket.grant(resident)
        elif resident.state is not WorkerState.STOPPING:
            resident.state = WorkerState.STOPPING
            self._effects.stop(resident, reason, cause)

    def _refuse_all(self, resident: Resident, error: OsaurusError) -> None:
        while resident.waiting:
            resident.waiting.popleft()[1].refuse(error)

    def _grant_all(self, resident: Resident, now: float) -> None:
        while resident.waiting:
            self._grant(resident, resident.waiting.popleft()[1], now)

    def _grant(self, resident: Resident, ticket: Ticket, now: float) -> None:
        # Counted only when somebody took it, or the model could never be unloaded again.
        if ticket.grant(resident):
            resident.in_flight += 1
            resident.last_used = now

    def _in(self, *states: WorkerState) -> list[Resident]:
        return [resident for resident in self._residents.values() if resident.state in states]

    def _held(self) -> list[Resident]:
        """Those that have memory, or are getting it."""
        return self._in(*IN_MEMORY)

    def _holding(self, resident: Resident, nbytes: int | None = None) -> Holding:
        return Holding(
            resident.key,
            resident.holds_bytes if nbytes is None else nbytes,
            last_used=resident.last_used,
            busy=resident.in_flight > 0 or resident.state is WorkerState.STARTING,
            pinned=resident.key in self._pins,
            leaving=resident.state is WorkerState.STOPPING,
        )
