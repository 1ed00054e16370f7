"""The scheduler's decisions over memory and time: room, turns, pins, keep-alive, back-off."""

import random

import pytest

from osaurusd.errors import Busy, InsufficientMemory, ShuttingDown, WorkerCrashed
from osaurusd.pool.resident import Cause, Rules
from osaurusd.wire.admin import IN_MEMORY
from tests.osaurusd.pool.timeline import CRASH, A, B, C, D, Timeline


@pytest.fixture
def timeline():
    """Room for 100 bytes; a model of 40 and three others of which the sizes say how they fit beside it."""
    timeline = Timeline(budget_bytes=100, wait_seconds=60, min_residency_seconds=10)
    timeline.sizes = {A: 40, B: 60, C: 50, D: 10}
    return timeline


def gone(timeline, key):
    """The worker that was told to stop is gone."""
    timeline.exited(timeline.resident(key), CRASH)


# Room


def test_models_that_fit_together_load_at_once(timeline):
    timeline.ask(A)
    timeline.ask(B)

    assert [("start", A), ("start", B)] == timeline.effects.calls


def test_an_idle_model_makes_room_and_the_next_one_starts_once_it_is_gone(timeline):
    timeline.load(A)
    timeline.load(B)

    timeline.ask(D)

    assert [("stop", A)] == timeline.effects.calls[2:]
    assert [Cause.ROOM] == timeline.effects.causes
    assert D in timeline.effects.reasons[0].message
    assert {A: "stopping", B: "ready", D: "queued"} == timeline.states()
    gone(timeline, A)
    assert {B: "ready", D: "starting"} == timeline.states()


def test_the_least_recently_used_goes_and_no_more_than_needed(timeline):
    timeline.sizes = dict.fromkeys((A, B, C, D), 30)
    for key in (A, B, C):
        timeline.load(key)
        timeline.now += 1
    timeline.released(timeline.ask(A).resident)

    timeline.ask(D)

    assert [("stop", B)] == timeline.effects.calls[3:]


def test_a_model_in_use_is_not_ended_for_another(timeline):
    timeline.load(A)
    running = timeline.ask(A)
    timeline.sizes[B] = 70

    waiting = timeline.ask(B)
    assert {A: "ready", B: "queued"} == timeline.states()

    timeline.released(running.resident)
    assert {A: "stopping", B: "queued"} == timeline.states()
    gone(timeline, A)
    timeline.ready(timeline.resident(B))
    assert waiting.resident.key == B


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_numbers(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes[B] = 101

    error = timeline.ask(B).error

    assert isinstance(error, InsufficientMemory)
    assert "can never fit" in error.message
    assert f"`{A}` holds" in error.message
    assert "1 in flight" in error.message
    assert {A: "ready"} == timeline.states()


def test_one_that_can_never_fit_is_refused_at_once_also_behind_one_that_waits(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes |= {B: 70, C: 200}
    timeline.ask(B)

    assert isinstance(timeline.ask(C).error, InsufficientMemory)


def test_one_that_waits_too_long_is_refused_and_what_it_waited_for_goes_on(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes[B] = 70
    waiting = timeline.ask(B)
    late = timeline.ask(B)

    timeline.pass_time(69)
    assert not waiting.settled
    blocked = timeline.ask(A)
    assert not blocked.settled
    timeline.pass_time(2)

    assert [InsufficientMemory] * 2 == [type(ticket.error) for ticket in (waiting, late)]
    assert blocked.resident is timeline.resident(A)
    assert {A: "ready"} == timeline.states()


def test_a_model_keeps_taking_requests_for_its_minimum_residency_and_no_longer(timeline):
    timeline.load(A)
    first = timeline.ask(A)
    timeline.sizes[B] = 70
    timeline.ask(B)

    timeline.pass_time(9)
    second = timeline.ask(A)
    timeline.pass_time(1)
    third = timeline.ask(A)

    assert second.resident
    assert not third.settled
    for ticket in (first, second):
        timeline.released(ticket.resident)
    assert {A: "stopping", B: "queued"} == timeline.states()


def test_residents_that_are_not_in_the_way_keep_serving(timeline):
    timeline.sizes = {A: 40, B: 10, C: 90}
    timeline.load(A)
    timeline.pass_time(1)
    timeline.load(B)
    timeline.ask(A)
    timeline.ask(C)
    timeline.pass_time(20)

    assert timeline.ask(B).resident


def test_one_behind_in_line_starts_if_it_takes_nothing_from_the_first(timeline):
    timeline.sizes = {A: 40, B: 70, C: 30, D: 31}
    timeline.load(A)
    timeline.ask(A)
    timeline.ask(B)

    timeline.ask(D)
    timeline.ask(C)

    assert {A: "ready", B: "queued", D: "queued", C: "queued"} == timeline.states()
    timeline.abandoned(next(ticket for _, ticket in timeline.resident(D).waiting))
    assert {A: "ready", B: "queued", C: "starting"} == timeline.states()


def test_one_that_gives_up_waiting_leaves_the_line(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes[B] = 70
    waiting = timeline.ask(B)
    timeline.pass_time(20)
    blocked = timeline.ask(A)
    assert not blocked.settled

    timeline.abandoned(waiting)

    assert blocked.resident
    assert {A: "ready"} == timeline.states()


def test_those_who_had_to_let_another_pass_have_the_next_turn(timeline):
    timeline.sizes = dict.fromkeys((A, B, C), 70)
    timeline.load(A)
    running = timeline.ask(A)
    timeline.pass_time(20)
    timeline.ask(B)
    passed = timeline.ask(A)
    timeline.ask(C)
    timeline.released(running.resident)
    gone(timeline, A)

    timeline.ready(timeline.resident(B))
    timeline.released(timeline.resident(B))
    gone(timeline, B)

    assert {C: "queued", A: "starting"} == timeline.states()
    timeline.ready(timeline.resident(A))
    assert passed.resident


def test_what_a_worker_says_of_its_needs_replaces_the_estimate(timeline):
    timeline.ask(A)
    timeline.ready(timeline.resident(A), needs_bytes=90)

    timeline.ask(D)
    assert {A: "ready", D: "starting"} == timeline.states()
    timeline.ask(C)
    assert "queued" == timeline.states()[C]


def test_a_model_that_turns_out_too_large_ends_idle_ones(timeline):
    timeline.load(A)
    timeline.ask(B)

    timeline.ready(timeline.resident(B), needs_bytes=70)

    assert {A: "stopping", B: "ready"} == timeline.states()


def test_what_requests_have_reserved_is_not_given_away(timeline):
    timeline.load(A)
    running = timeline.ask(A)
    timeline.reserved(running.resident, 80)

    timeline.ask(B)
    assert {A: "ready", B: "queued"} == timeline.states()
    timeline.reserved(running.resident, 40)

    assert {A: "ready", B: "starting"} == timeline.states()


def test_a_smaller_budget_ends_idle_models(timeline):
    timeline.load(A)
    timeline.load(B)

    timeline.configure(Rules(budget_bytes=70))

    assert [("stop", A)] == timeline.effects.calls[2:]


def test_what_requests_of_a_pinned_model_have_reserved_is_waited_for(timeline):
    timeline.pin(timeline.demand(A))
    timeline.load(A)
    running = timeline.ask(A)
    timeline.reserved(running.resident, 80)

    waiting = timeline.ask(C)
    assert not waiting.settled
    timeline.pass_time(59)
    assert not waiting.settled
    timeline.released(running.resident)

    assert {A: "ready", C: "starting"} == timeline.states()


def test_one_that_is_only_starting_is_not_the_first_to_go(timeline):
    timeline.sizes = {A: 50, B: 50, C: 50}
    timeline.load(A)
    timeline.ask(A)
    timeline.pass_time(1)
    timeline.ask(B)
    timeline.ask(C)
    timeline.pass_time(20)

    assert not timeline.ask(A).settled
    timeline.ready(timeline.resident(B))
    assert timeline.ask(B).resident


# Shares


def test_shares_follow_who_is_there_and_never_exceed_the_budget(timeline):
    timeline.load(A)
    assert timeline.resident(A).limit_bytes == 100

    timeline.load(C)
    assert [(A, 45)] == timeline.effects.limits
    assert timeline.resident(C).limit_bytes == 55

    timeline.unload(C)
    gone(timeline, C)
    assert (A, 100) == timeline.effects.limits[-1]


def test_requests_that_come_and_go_change_no_shares(timeline):
    timeline.load(A)
    timeline.load(C)
    before = list(timeline.effects.limits)

    timeline.released(timeline.ask(A).resident)

    assert before == timeline.effects.limits


# Keep-alive


def test_an_idle_model_goes_after_its_keep_alive_from_the_end_of_the_last_request(timeline):
    timeline.keep_alive = 60
    timeline.load(A)
    running = timeline.ask(A)
    timeline.pass_time(500)
    timeline.released(running.resident)

    timeline.pass_time(59)
    assert {A: "ready"} == timeline.states()
    timeline.pass_time(1)

    assert {A: "stopping"} == timeline.states()
    assert [Cause.IDLE] == timeline.effects.causes


def test_a_model_that_stays_for_ever_stays(timeline):
    timeline.load(A)

    timeline.pass_time(1e9)

    assert {A: "ready"} == timeline.states()


def test_with_no_keep_alive_a_model_goes_with_its_first_request_but_not_before(timeline):
    timeline.keep_alive = 0
    ticket = timeline.ask(A)
    timeline.ready(timeline.resident(A))
    timeline.released(ticket.resident, served=False)
    timeline.pass_time(100)
    assert {A: "ready"} == timeline.states()

    timeline.released(timeline.ask(A).resident)

    assert {A: "stopping"} == timeline.states()


def test_a_keep_alive_can_be_changed_while_it_runs(timeline):
    timeline.load(A)
    timeline.keep(A, 5)

    timeline.pass_time(5)

    assert {A: "stopping"} == timeline.states()


# Pins


def test_a_pinned_model_is_neither_evicted_nor_idled_out(timeline):
    timeline.keep_alive = 5
    timeline.pin(timeline.demand(A))
    timeline.load(A)
    timeline.pass_time(100)

    timeline.sizes[B] = 60
    timeline.ask(B)
    timeline.ask(C)

    assert {A: "ready", B: "starting", C: "queued"} == timeline.states()


def test_what_fits_only_in_place_of_a_pinned_model_is_refused_at_once(timeline):
    timeline.pin(timeline.demand(A))
    timeline.load(A)
    timeline.sizes[B] = 61

    error = timeline.ask(B).error

    assert isinstance(error, InsufficientMemory)
    assert "pinned" in error.message


def test_pins_that_exceed_the_budget_together_are_refused_with_the_sums(timeline):
    timeline.sizes = {A: 40 * 10**6, B: 70 * 10**6}
    timeline.configure(Rules(budget_bytes=100 * 10**6))
    timeline.pin(timeline.demand(A))

    with pytest.raises(InsufficientMemory, match=r"40.0 MB \+ .*70.0 MB make 110.0 MB.*100.0 MB"):
        timeline.pin(timeline.demand(B))

    assert {A} == timeline.pinned


def test_a_pinned_model_is_unloaded_by_force_only_and_then_stays_away_until_asked_for(timeline):
    timeline.pin(timeline.demand(A))
    timeline.load(A)

    assert isinstance(timeline.unload(A).error, Busy)
    timeline.unload(A, force=True)
    gone(timeline, A)
    timeline.pass_time(1000)

    assert {} == timeline.states()
    assert {A} == timeline.pinned
    timeline.ask(A)
    assert {A: "starting"} == timeline.states()


def test_a_pinned_model_comes_back_with_back_off(timeline):
    timeline.pin(timeline.demand(A))
    timeline.load(A)
    seen = []
    for _ in range(9):
        died = timeline.now
        timeline.exited(timeline.resident(A), CRASH)
        while A not in timeline.states():
            timeline.pass_time(0.5)
        seen.append(timeline.now - died)

    assert [0, 1, 2, 4, 8, 16, 32, 60, 60] == seen


def test_a_pinned_model_that_finds_no_room_tries_again_later(timeline):
    timeline.load(C)
    timeline.pin(timeline.demand(B))
    timeline.pin(timeline.demand(C), check=False)
    timeline.ask(B)

    assert {C: "ready"} == timeline.states()
    timeline.unpin(C)
    timeline.pass_time(60)
    assert {C: "stopping", B: "queued"} == timeline.states()


def test_an_unpinned_model_is_like_any_other(timeline):
    timeline.keep_alive = 5
    timeline.pin(timeline.demand(A))
    timeline.load(A)

    timeline.unpin(A)
    timeline.pass_time(5)

    assert {A: "stopping"} == timeline.states()


# Deaths


def die(timeline, key=A):
    timeline.exited(timeline.resident(key), CRASH)


def test_repeated_deaths_back_off_and_requests_meanwhile_are_refused_with_the_reason(timeline):
    timeline.ask(A)
    die(timeline)
    timeline.ask(A)
    die(timeline)

    refused = timeline.ask(A)

    assert isinstance(refused.error, WorkerCrashed)
    assert "it crashed" in refused.error.message
    assert "1 s" in refused.error.message
    timeline.pass_time(1)
    assert not timeline.ask(A).settled


def test_who_insists_does_not_wait_for_the_back_off(timeline):
    for _ in range(5):
        timeline.ask(A, insist=True)
        die(timeline)

    assert not timeline.ask(A, insist=True).settled


def test_one_that_lived_long_enough_begins_anew(timeline):
    for _ in range(5):
        timeline.ask(A, insist=True)
        die(timeline)
    timeline.ask(A, insist=True)
    timeline.ready(timeline.resident(A))
    timeline.pass_time(60)
    die(timeline)

    assert timeline.failures[A].deaths == 1
    assert not timeline.ask(A).settled


def test_one_that_was_ended_in_order_has_not_failed(timeline):
    timeline.ask(A)
    die(timeline)
    timeline.load(A)
    timeline.unload(A)
    gone(timeline, A)

    assert {} == timeline.failures


def test_a_death_makes_room_for_those_who_wait(timeline):
    timeline.sizes[B] = 70
    timeline.load(A)
    timeline.ask(A)
    timeline.ask(B)

    die(timeline)

    assert {B: "starting"} == timeline.states()


# Whatever happens


def test_unloading_one_that_waits_for_room_by_force_refuses_those_who_want_it(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes[B] = 70
    waiting = timeline.ask(B)

    assert isinstance(timeline.unload(B).error, Busy)
    assert timeline.unload(B, force=True).settled
    assert waiting.error is not None
    assert {A: "ready"} == timeline.states()


def test_shutting_down_refuses_those_who_wait_for_room(timeline):
    timeline.load(A)
    timeline.ask(A)
    timeline.sizes[B] = 70
    waiting = timeline.ask(B)

    timeline.shut_down()

    assert isinstance(waiting.error, ShuttingDown)
    assert {A: "stopping"} == timeline.states()


class World:
    """Requests, ends, crashes, unloads, pins and time, in any order."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.timeline = Timeline(budget_bytes=100, wait_seconds=30, min_residency_seconds=5)
        self.timeline.sizes = {A: 40, B: 60, C: 50, D: 10}
        self.timeline.keep_alive = self.dice.choice([None, 0, 20])
        self.waiting, self.running = [], []

    def ask(self):
        self.waiting.append(self.timeline.ask(self.dice.choice((A, B, C, D))))

    def progress(self):
        """Workers do what they were told, but for some that die."""
        for resident in self.timeline.residents:
            dies = self.dice.random() < 0.1
            if resident.state == "stopping" or (resident.state == "starting" and dies):
                self.timeline.exited(resident, CRASH)
            elif resident.state == "starting":
                self.timeline.ready(resident)

    def finish(self):
        if self.running:
            self.timeline.released(self.running.pop(self.dice.randrange(len(self.running))).resident)

    def unload(self):
        self.timeline.unload(self.dice.choice((A, B, C, D)), force=self.dice.random() < 0.3)

    def give_up(self):
        if self.waiting:
            self.timeline.abandoned(self.waiting.pop(self.dice.randrange(len(self.waiting))))

    def pin(self):
        self.dice.choice([self.timeline.unpin, lambda key: self.timeline.pin(self.timeline.demand(key))])(D)

    def pass_time(self):
        self.timeline.pass_time(self.dice.random() * 8)

    def happen(self):
        events = {self.ask: 6, self.progress: 6, self.finish: 5, self.pass_time: 2, self.unload: 1, self.pin: 1}
        events[self.give_up] = 1
        self.dice.choices(list(events), list(events.values()))[0]()
        self.look()

    def look(self):
        """See who was granted, and whether memory is overcommitted."""
        self.running += [ticket for ticket in self.waiting if ticket.resident in self.timeline.residents]
        self.waiting = [ticket for ticket in self.waiting if not ticket.settled]
        held = [resident for resident in self.timeline.residents if resident.state in IN_MEMORY]
        leaving = sum(resident.holds_bytes for resident in held if resident.state == "stopping")
        assert sum(resident.holds_bytes for resident in held) <= 100
        assert leaving + sum(resident.limit_bytes for resident in held if resident.state != "stopping") <= 100


@pytest.mark.parametrize("seed", range(25))
def test_everybody_is_answered_whatever_happens_and_memory_is_never_overcommitted(seed):
    world = World(seed)
    for _ in range(300):
        world.happen()

    for _ in range(100):
        world.progress()
        while world.running:
            world.finish()
        world.timeline.pass_time(5)
        world.look()

    assert [] == world.waiting


def test_alternating_requests_for_two_that_fit_one_at_a_time_are_all_answered_without_thrashing(timeline):
    timeline.sizes = {A: 70, B: 70}
    waiting, running, answered = [], [], 0
    for step in range(400):
        if step < 200:
            waiting.append(timeline.ask((A, B)[step % 2]))
        for resident in timeline.residents:
            if resident.state == "starting":
                timeline.ready(resident)
            elif resident.state == "stopping":
                timeline.exited(resident, CRASH)
        running += [ticket for ticket in waiting if ticket.settled]
        waiting = [ticket for ticket in waiting if not ticket.settled]
        if step % 2 and running:
            timeline.released(running.pop(0).resident)
            answered += 1
        timeline.pass_time(0.5)
    for ticket in running:
        timeline.released(ticket.resident)

    starts = [call for call in timeline.effects.calls if call[0] == "start"]
    assert [] == [ticket for ticket in waiting if ticket.error] + [t for t in running if t.error]
    assert answered + len(running) + len(waiting) == 200
    assert len(starts) <= 30
