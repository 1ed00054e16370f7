"""The scheduler's decisions over memory and time: eviction, the queue, pins, keep-alive."""

import random

import pytest

from osaurusd.errors import Busy, InsufficientMemory, ShuttingDown
from osaurusd.pool.state import SchedulerConfig, StopCause
from osaurusd.wire.admin import IN_MEMORY
from tests.osaurusd.pool.simulation import CRASH, A, B, C, D, Simulation


@pytest.fixture
def scheduler():
    """A budget of 100 bytes; the sizes determine which models fit together."""
    scheduler = Simulation(budget_bytes=100, wait_seconds=60, min_residency_seconds=10)
    scheduler.sizes = {A: 40, B: 60, C: 50, D: 10}
    return scheduler


# Eviction


def test_models_that_fit_together_load_at_once(scheduler):
    scheduler.request(A)
    scheduler.request(B)

    assert [("start", A), ("start", B)] == scheduler.effects.calls


def test_an_idle_model_is_evicted_and_the_queued_one_starts_after_its_exit(scheduler):
    scheduler.load(A)
    scheduler.load(B)

    scheduler.request(D)

    assert [("stop", A)] == scheduler.effects.calls[2:]
    assert [StopCause.MEMORY] == scheduler.effects.causes
    assert f"evicted for `{D}`" in scheduler.effects.reasons[0].message
    assert {A: "stopping", B: "ready", D: "queued"} == scheduler.states()
    scheduler.exit(A)
    assert {B: "ready", D: "starting"} == scheduler.states()


def test_the_least_recently_used_model_is_evicted_and_no_more_than_needed(scheduler):
    scheduler.sizes = dict.fromkeys((A, B, C, D), 30)
    for key in (A, B, C):
        scheduler.load(key)
        scheduler.now += 1
    scheduler.release(scheduler.request(A).model)

    scheduler.request(D)

    assert [("stop", B)] == scheduler.effects.calls[3:]


def test_a_busy_model_is_evicted_only_after_its_requests(scheduler):
    scheduler.load(A)
    running = scheduler.request(A)
    scheduler.sizes[B] = 70

    waiting = scheduler.request(B)
    assert {A: "ready", B: "queued"} == scheduler.states()

    scheduler.release(running.model)
    assert {A: "stopping", B: "queued"} == scheduler.states()
    scheduler.exit(A)
    scheduler.ready(scheduler.model(B))
    assert waiting.model.key == B


def test_a_loading_model_is_not_evicted_before_busy_ones(scheduler):
    scheduler.sizes = {A: 50, B: 50, C: 50}
    scheduler.load(A)
    scheduler.request(A)
    scheduler.pass_time(1)
    scheduler.request(B)
    scheduler.request(C)
    scheduler.pass_time(20)

    assert not scheduler.request(A).settled
    scheduler.ready(scheduler.model(B))
    assert scheduler.request(B).model


def test_a_smaller_budget_evicts_idle_models(scheduler):
    scheduler.load(A)
    scheduler.load(B)

    scheduler.configure(SchedulerConfig(budget_bytes=70))

    assert [("stop", A)] == scheduler.effects.calls[2:]


def test_a_model_larger_than_estimated_evicts_idle_ones(scheduler):
    scheduler.load(A)
    scheduler.request(B)

    scheduler.ready(scheduler.model(B), needs_bytes=70)

    assert {A: "stopping", B: "ready"} == scheduler.states()


def test_measured_memory_replaces_the_estimate(scheduler):
    scheduler.request(A)
    scheduler.ready(scheduler.model(A), needs_bytes=90)

    scheduler.request(D)
    assert {A: "ready", D: "starting"} == scheduler.states()
    scheduler.request(C)
    assert scheduler.states()[C] == "queued"


def test_plan_replaces_the_first_estimate_of_a_distributed_model(scheduler):
    scheduler.planned = True
    scheduler.pin(scheduler.spec(A))
    scheduler.request(A)
    scheduler.ready(scheduler.model(A), needs_bytes=90, planned=True)

    assert scheduler.model(A).needs_bytes == scheduler.pinned_bytes == 90


def test_part_of_a_distributed_model_is_not_the_size_of_the_whole(scheduler):
    scheduler.planned = True
    scheduler.request(A)
    scheduler.ready(scheduler.model(A), needs_bytes=15, planned=True)
    scheduler.unload(A, force=True)
    scheduler.exit(A)

    scheduler.planned = False
    scheduler.request(A)
    assert scheduler.model(A).needs_bytes == 40


def test_measured_size_is_not_that_of_a_distributed_model_which_is_loaded_again(scheduler):
    scheduler.load(A)
    scheduler.ready(scheduler.model(A), needs_bytes=95)
    scheduler.unload(A)
    scheduler.exit(A)
    scheduler.planned = True
    scheduler.request(A)
    scheduler.ready(scheduler.model(A), needs_bytes=20, planned=True)
    scheduler.unload(A, force=True)
    scheduler.request(A)
    scheduler.exit(A)

    assert scheduler.model(A).needs_bytes == 20


def test_memory_reserved_for_requests_is_not_given_away(scheduler):
    scheduler.load(A)
    running = scheduler.request(A)
    scheduler.reserve(running.model, 80)

    scheduler.request(B)
    assert {A: "ready", B: "queued"} == scheduler.states()
    scheduler.reserve(running.model, 40)

    assert {A: "ready", B: "starting"} == scheduler.states()


def test_memory_reserved_by_a_pinned_model_is_waited_for(scheduler):
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)
    running = scheduler.request(A)
    scheduler.reserve(running.model, 80)

    waiting = scheduler.request(C)
    scheduler.pass_time(59)
    assert not waiting.settled
    scheduler.release(running.model)

    assert {A: "ready", C: "starting"} == scheduler.states()


# Rejections


def test_a_model_that_can_never_fit_is_rejected_at_once_with_the_numbers(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes[B] = 101

    error = scheduler.request(B).error

    assert isinstance(error, InsufficientMemory)
    assert "can never fit" in error.message
    assert f"`{A}` holds" in error.message
    assert "1 in flight" in error.message
    assert {A: "ready"} == scheduler.states()


def test_a_model_that_can_never_fit_is_rejected_at_once_behind_a_queued_one(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes |= {B: 70, C: 200}
    scheduler.request(B)

    assert isinstance(scheduler.request(C).error, InsufficientMemory)


def test_a_model_that_waits_too_long_is_rejected_and_the_draining_one_serves_again(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes[B] = 70
    waiting, late = scheduler.request(B), scheduler.request(B)

    scheduler.pass_time(69)
    assert not waiting.settled
    held_back = scheduler.request(A)
    assert not held_back.settled
    scheduler.pass_time(2)

    assert [InsufficientMemory] * 2 == [type(waiter.error) for waiter in (waiting, late)]
    assert held_back.model is scheduler.model(A)
    assert {A: "ready"} == scheduler.states()


# The queue


def test_a_model_accepts_requests_for_its_minimum_residency_only(scheduler):
    scheduler.load(A)
    first = scheduler.request(A)
    scheduler.sizes[B] = 70
    scheduler.request(B)

    scheduler.pass_time(9)
    second = scheduler.request(A)
    scheduler.pass_time(1)
    third = scheduler.request(A)

    assert second.model
    assert not third.settled
    for waiter in (first, second):
        scheduler.release(waiter.model)
    assert {A: "stopping", B: "queued"} == scheduler.states()


def test_models_that_are_not_evicted_keep_serving(scheduler):
    scheduler.sizes = {A: 40, B: 10, C: 90}
    scheduler.load(A)
    scheduler.pass_time(1)
    scheduler.load(B)
    scheduler.request(A)
    scheduler.request(C)
    scheduler.pass_time(20)

    assert scheduler.request(B).model


def test_a_queued_model_starts_early_only_if_it_does_not_delay_the_first(scheduler):
    scheduler.sizes = {A: 40, B: 70, C: 30, D: 31}
    scheduler.load(A)
    scheduler.request(A)
    scheduler.request(B)

    waiting = scheduler.request(D)
    scheduler.request(C)

    assert {A: "ready", B: "queued", D: "queued", C: "queued"} == scheduler.states()
    scheduler.abandon(waiting)
    assert {A: "ready", B: "queued", C: "starting"} == scheduler.states()


def test_an_abandoned_model_leaves_the_queue(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes[B] = 70
    waiting = scheduler.request(B)
    scheduler.pass_time(20)
    held_back = scheduler.request(A)
    assert not held_back.settled

    scheduler.abandon(waiting)

    assert held_back.model
    assert {A: "ready"} == scheduler.states()


def test_requests_of_an_evicted_model_keep_their_position(scheduler):
    scheduler.sizes = dict.fromkeys((A, B, C), 70)
    scheduler.load(A)
    running = scheduler.request(A)
    scheduler.pass_time(20)
    scheduler.request(B)
    held_back = scheduler.request(A)
    scheduler.request(C)
    scheduler.release(running.model)
    scheduler.exit(A)

    scheduler.ready(scheduler.model(B))
    scheduler.release(scheduler.model(B))
    scheduler.exit(B)

    assert {C: "queued", A: "starting"} == scheduler.states()
    scheduler.ready(scheduler.model(A))
    assert held_back.model


def test_a_crash_makes_room_for_the_queue(scheduler):
    scheduler.sizes[B] = 70
    scheduler.load(A)
    scheduler.request(A)
    scheduler.request(B)

    scheduler.exit(A)

    assert {B: "starting"} == scheduler.states()


def test_unloading_a_queued_model_by_force_rejects_its_requests(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes[B] = 70
    waiting = scheduler.request(B)

    assert isinstance(scheduler.unload(B).error, Busy)
    assert scheduler.unload(B, force=True).settled
    assert waiting.error is not None
    assert {A: "ready"} == scheduler.states()


def test_shutting_down_rejects_the_queue(scheduler):
    scheduler.load(A)
    scheduler.request(A)
    scheduler.sizes[B] = 70
    waiting = scheduler.request(B)

    scheduler.shut_down()

    assert isinstance(waiting.error, ShuttingDown)
    assert {A: "stopping"} == scheduler.states()


# Limits


def test_limits_follow_the_models_in_memory_within_the_budget(scheduler):
    scheduler.load(A)
    assert scheduler.model(A).limit_bytes == 100

    scheduler.load(C)
    assert [(A, 45)] == scheduler.effects.limits
    assert scheduler.model(C).limit_bytes == 55

    scheduler.unload(C)
    scheduler.exit(C)
    assert (A, 100) == scheduler.effects.limits[-1]


def test_requests_do_not_change_limits(scheduler):
    scheduler.load(A)
    scheduler.load(C)
    before = list(scheduler.effects.limits)

    scheduler.release(scheduler.request(A).model)

    assert before == scheduler.effects.limits


# Keep-alive


def test_an_idle_model_is_unloaded_a_keep_alive_after_its_last_request(scheduler):
    scheduler.keep_alive = 60
    scheduler.load(A)
    running = scheduler.request(A)
    scheduler.pass_time(500)
    scheduler.release(running.model)

    scheduler.pass_time(59)
    assert {A: "ready"} == scheduler.states()
    scheduler.pass_time(1)

    assert {A: "stopping"} == scheduler.states()
    assert [StopCause.IDLE] == scheduler.effects.causes
    assert scheduler.effects.reasons[0].message == "the model was idle for 60 s"


def test_a_model_without_a_keep_alive_stays_loaded(scheduler):
    scheduler.load(A)

    scheduler.pass_time(1e9)

    assert {A: "ready"} == scheduler.states()


def test_a_keep_alive_of_zero_unloads_after_the_first_request_but_not_before(scheduler):
    scheduler.keep_alive = 0
    waiter = scheduler.request(A)
    scheduler.ready(scheduler.model(A))
    scheduler.release(waiter.model, served=False)
    scheduler.pass_time(100)
    assert {A: "ready"} == scheduler.states()

    scheduler.release(scheduler.request(A).model)

    assert {A: "stopping"} == scheduler.states()


def test_a_fixed_keep_alive_overrides_the_configuration(scheduler):
    scheduler.load(A)
    scheduler.set_keep_alive(A, 5)
    scheduler.set_keep_alive(A, 500, fixed=False)

    scheduler.pass_time(5)

    assert {A: "stopping"} == scheduler.states()


# Pins


def test_a_pinned_model_is_neither_evicted_nor_idle_unloaded(scheduler):
    scheduler.keep_alive = 5
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)
    scheduler.pass_time(100)

    scheduler.request(B)
    scheduler.request(C)

    assert {A: "ready", B: "starting", C: "queued"} == scheduler.states()


def test_a_model_that_does_not_fit_beside_pinned_ones_is_rejected_at_once(scheduler):
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)
    scheduler.sizes[B] = 61

    error = scheduler.request(B).error

    assert isinstance(error, InsufficientMemory)
    assert "pinned" in error.message


def test_pins_over_the_budget_are_rejected(scheduler):
    scheduler.sizes[B] = 70
    scheduler.pin(scheduler.spec(A))

    with pytest.raises(InsufficientMemory):
        scheduler.pin(scheduler.spec(B))

    assert {A} == scheduler.pinned
    assert scheduler.pinned_bytes == 40


def test_a_pinned_model_is_unloaded_only_by_force_and_stays_unloaded_until_requested(scheduler):
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)

    assert isinstance(scheduler.unload(A).error, Busy)
    scheduler.unload(A, force=True)
    scheduler.exit(A)
    scheduler.pass_time(1000)

    assert {} == scheduler.states()
    assert {A} == scheduler.pinned
    scheduler.request(A)
    assert {A: "starting"} == scheduler.states()


def test_a_pinned_model_is_restarted_with_backoff(scheduler):
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)
    waits = []
    for _ in range(9):
        exited_at = scheduler.now
        scheduler.exit(A)
        while A not in scheduler.states():
            scheduler.pass_time(0.5)
        waits.append(scheduler.now - exited_at)

    assert [0, 1, 2, 4, 8, 16, 32, 60, 60] == waits


def test_a_pinned_model_without_memory_is_retried(scheduler):
    scheduler.load(C)
    scheduler.pin(scheduler.spec(B))
    scheduler.pin(scheduler.spec(C), check=False)
    scheduler.request(B)

    assert {C: "ready"} == scheduler.states()
    scheduler.unpin(C)
    scheduler.pass_time(60)
    assert {C: "stopping", B: "queued"} == scheduler.states()


def test_an_unpinned_model_is_subject_to_its_keep_alive(scheduler):
    scheduler.keep_alive = 5
    scheduler.pin(scheduler.spec(A))
    scheduler.load(A)

    scheduler.unpin(A)
    scheduler.pass_time(5)

    assert {A: "stopping"} == scheduler.states()


# Random sequences of events


class RandomEvents:
    """Requests, releases, crashes, unloads, pins and time in random order."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.scheduler = Simulation(budget_bytes=100, wait_seconds=30, min_residency_seconds=5)
        self.scheduler.sizes = {A: 40, B: 60, C: 50, D: 10}
        self.scheduler.keep_alive = self.dice.choice([None, 0, 20])
        self.waiting, self.running = [], []

    def step(self):
        events = {
            self.request: 6,
            self.advance_workers: 6,
            self.release: 5,
            self.pass_time: 2,
            self.unload: 1,
            self.toggle_pin: 1,
            self.abandon: 1,
        }
        self.dice.choices(list(events), list(events.values()))[0]()
        self.check()

    def request(self):
        self.waiting.append(self.scheduler.request(self.dice.choice((A, B, C, D))))

    def advance_workers(self):
        """Workers finish starting and stopping; some crash while starting."""
        for model in self.scheduler.models:
            crashes = self.dice.random() < 0.1
            if model.state == "stopping" or (model.state == "starting" and crashes):
                self.scheduler.exited(model, CRASH)
            elif model.state == "starting":
                self.scheduler.ready(model)

    def release(self):
        if self.running:
            self.scheduler.release(self.running.pop(self.dice.randrange(len(self.running))).model)

    def unload(self):
        self.scheduler.unload(self.dice.choice((A, B, C, D)), force=self.dice.random() < 0.3)

    def abandon(self):
        if self.waiting:
            self.scheduler.abandon(self.waiting.pop(self.dice.randrange(len(self.waiting))))

    def toggle_pin(self):
        if D in self.scheduler.pinned:
            self.scheduler.unpin(D)
        else:
            self.scheduler.pin(self.scheduler.spec(D))

    def pass_time(self):
        self.scheduler.pass_time(self.dice.random() * 8)

    def check(self):
        """Collect granted requests; check that memory is not overcommitted."""
        models = self.scheduler.models
        self.running += [waiter for waiter in self.waiting if waiter.model in models]
        self.waiting = [waiter for waiter in self.waiting if not waiter.settled]
        in_memory = [model for model in models if model.state in IN_MEMORY]
        leaving = sum(model.held_bytes for model in in_memory if model.state == "stopping")
        assert sum(model.held_bytes for model in in_memory) <= 100
        assert leaving + sum(model.limit_bytes for model in in_memory if model.state != "stopping") <= 100


@pytest.mark.parametrize("seed", range(25))
def test_every_request_is_settled_and_memory_is_never_overcommitted(seed):
    events = RandomEvents(seed)
    for _ in range(300):
        events.step()

    for _ in range(100):
        events.advance_workers()
        while events.running:
            events.release()
        events.scheduler.pass_time(5)
        events.check()

    assert [] == events.waiting


def test_alternating_requests_for_two_models_that_do_not_fit_together_do_not_thrash(scheduler):
    scheduler.sizes = {A: 70, B: 70}
    waiting, running, served = [], [], 0
    for step in range(400):
        if step < 200:
            waiting.append(scheduler.request((A, B)[step % 2]))
        for model in scheduler.models:
            if model.state == "starting":
                scheduler.ready(model)
            elif model.state == "stopping":
                scheduler.exited(model, CRASH)
        running += [waiter for waiter in waiting if waiter.settled]
        waiting = [waiter for waiter in waiting if not waiter.settled]
        if step % 2 and running:
            scheduler.release(running.pop(0).model)
            served += 1
        scheduler.pass_time(0.5)

    assert [] == [waiter for waiter in waiting + running if waiter.error]
    assert served + len(running) + len(waiting) == 200
    assert len([call for call in scheduler.effects.calls if call[0] == "start"]) <= 30
