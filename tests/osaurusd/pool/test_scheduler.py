"""The life of a model in the scheduler: loading, failing, unloading, shutting down."""

import pytest

from osaurusd.errors import Busy, LoadFailed, ModelUnloaded, QueueFull, ShuttingDown, WorkerCrashed
from osaurusd.pool.state import ModelState
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.pool.simulation import CRASH, A, B, Simulation


@pytest.fixture
def scheduler():
    return Simulation(max_waiting=5)


@pytest.fixture
def effects(scheduler):
    return scheduler.effects


# Loading


def test_the_first_request_starts_a_worker_and_waits(scheduler, effects):
    waiter = scheduler.request()

    assert [("start", A)] == effects.calls
    assert not waiter.settled
    assert {A: "starting"} == scheduler.states()


def test_requests_during_a_load_share_it(scheduler, effects):
    waiters = [scheduler.request() for _ in range(3)]

    scheduler.ready(effects.last)

    assert [("start", A)] == effects.calls
    assert [effects.last] * 3 == [waiter.model for waiter in waiters]
    assert effects.last.in_flight == 3
    assert not effects.last.waiters


def test_waiting_requests_are_granted_in_order(scheduler, effects):
    waiters = [scheduler.request() for _ in range(5)]

    scheduler.ready(effects.last)

    assert sorted(waiters, key=lambda waiter: waiter.order) == waiters


def test_a_request_for_a_ready_model_is_granted_at_once(scheduler, effects):
    model = scheduler.load()

    waiter = scheduler.request()

    assert waiter.model is model
    assert model.in_flight == 1
    assert [("start", A)] == effects.calls


def test_a_request_over_the_waiting_limit_is_rejected(scheduler):
    waiters = [scheduler.request() for _ in range(6)]

    assert isinstance(waiters[-1].error, QueueFull)
    assert "5 requests are already waiting" in waiters[-1].error.message
    assert not any(waiter.settled for waiter in waiters[:-1])


def test_a_cancelled_waiter_does_not_count_as_in_flight(scheduler, effects):
    scheduler.request(cancelled=True)
    other = scheduler.request()

    scheduler.ready(effects.last)
    scheduler.request(cancelled=True)

    assert effects.last.in_flight == 1
    scheduler.release(other.model)
    assert scheduler.unload().error is None


def test_an_abandoned_request_does_not_stop_the_load(scheduler, effects):
    waiter, other = scheduler.request(), scheduler.request()

    scheduler.abandon(waiter)
    scheduler.ready(effects.last)

    assert not waiter.settled
    assert other.model is effects.last
    assert effects.last.in_flight == 1


def test_abandoning_a_granted_request_changes_nothing(scheduler, effects):
    waiter = scheduler.request()
    scheduler.ready(effects.last)

    scheduler.abandon(waiter)

    assert effects.last.in_flight == 1


# Failures


@pytest.mark.parametrize("error", [CRASH, LoadFailed("no such weights")])
def test_a_failed_load_rejects_all_waiting_requests(scheduler, effects, error):
    waiters = [scheduler.request() for _ in range(3)]

    scheduler.exited(effects.last, error)

    assert [error] * 3 == [waiter.error for waiter in waiters]
    assert scheduler.models == []


def test_the_request_after_a_crash_starts_a_new_worker(scheduler, effects):
    scheduler.request()
    first = effects.last
    scheduler.exited(first, CRASH)

    waiter = scheduler.request()
    scheduler.ready(effects.last)

    assert [("start", A), ("start", A)] == effects.calls
    assert effects.last is not first
    assert waiter.model is effects.last


def test_a_crash_does_not_restart_the_worker_by_itself(scheduler, effects):
    scheduler.load()
    scheduler.request()

    scheduler.exit()

    assert [("start", A)] == effects.calls
    assert scheduler.models == []


def test_a_release_after_a_crash_does_not_affect_the_next_worker(scheduler, effects):
    crashed = scheduler.load()
    late = scheduler.request()
    scheduler.exited(crashed, CRASH)
    scheduler.request()
    scheduler.ready(effects.last)

    scheduler.release(late.model)

    assert effects.last is not crashed
    assert effects.last.in_flight == 1


def test_repeated_failures_reject_requests_with_the_reason_until_the_backoff_is_over(scheduler):
    for _ in range(2):
        scheduler.request()
        scheduler.exit()

    rejected = scheduler.request()

    assert isinstance(rejected.error, WorkerCrashed)
    assert "it crashed" in rejected.error.message
    assert "failed 2 times in a row" in rejected.error.message
    assert "in 1 s" in rejected.error.message
    assert rejected.error.retry_after == 1
    scheduler.pass_time(1)
    assert not scheduler.request().settled


def test_a_request_that_ignores_the_backoff_starts_the_worker(scheduler):
    for _ in range(5):
        scheduler.request(ignore_backoff=True)
        scheduler.exit()

    assert not scheduler.request(ignore_backoff=True).settled


def test_a_long_uptime_resets_the_backoff(scheduler):
    for _ in range(5):
        scheduler.request(ignore_backoff=True)
        scheduler.exit()
    scheduler.request(ignore_backoff=True)
    scheduler.ready(scheduler.model(A))
    scheduler.pass_time(60)
    scheduler.exit()

    assert scheduler.failures[A].count == 1
    assert not scheduler.request().settled


def test_a_regular_stop_clears_failures(scheduler):
    scheduler.request()
    scheduler.exit()
    scheduler.load()
    scheduler.unload()
    scheduler.exit()

    assert scheduler.failures == {}


# Unloading


def test_unloading_an_idle_model_is_confirmed_after_the_exit(scheduler, effects):
    model = scheduler.load()

    waiter = scheduler.unload()

    assert [("start", A), ("stop", A)] == effects.calls
    assert model.state == WorkerState.STOPPING
    assert not waiter.settled
    scheduler.exit()
    assert waiter.model is model
    assert scheduler.models == []


def test_unloading_an_absent_model_is_confirmed_at_once(scheduler, effects):
    waiter = scheduler.unload("org/absent")

    assert waiter.settled
    assert waiter.error is None
    assert effects.calls == []


def test_a_busy_model_is_not_unloaded(scheduler, effects):
    model = scheduler.load()
    scheduler.request()
    scheduler.request()

    waiter = scheduler.unload()

    assert isinstance(waiter.error, Busy)
    assert f"`{A}` is serving 2 request(s)" in waiter.error.message
    assert [("start", A)] == effects.calls
    assert model.state == WorkerState.READY


def test_a_busy_model_is_unloaded_by_force(scheduler, effects):
    scheduler.load()
    scheduler.request()

    waiter = scheduler.unload(force=True)

    assert [("start", A), ("stop", A)] == effects.calls
    assert isinstance(effects.reasons[0], ModelUnloaded)
    scheduler.exit()
    assert waiter.error is None


def test_a_loading_model_with_waiting_requests_is_unloaded_only_by_force(scheduler, effects):
    waiting = scheduler.request()
    assert isinstance(scheduler.unload().error, Busy)
    assert not waiting.settled

    waiter = scheduler.unload(force=True)

    assert isinstance(waiting.error, ModelUnloaded)
    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exit()
    assert waiter.error is None


def test_a_loading_model_without_waiting_requests_is_unloaded(scheduler, effects):
    scheduler.abandon(scheduler.request())

    waiter = scheduler.unload()

    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exit()
    assert waiter.error is None


def test_a_worker_that_becomes_ready_while_stopping_stays_stopping(scheduler, effects):
    scheduler.request()
    scheduler.unload(force=True)

    scheduler.ready(effects.last)
    waiter = scheduler.request()

    assert effects.last.state == WorkerState.STOPPING
    assert not waiter.settled


def test_several_unloads_share_one_stop(scheduler, effects):
    scheduler.load()

    waiters = [scheduler.unload(), scheduler.unload(), scheduler.unload(force=True)]
    scheduler.exit()

    assert [("start", A), ("stop", A)] == effects.calls
    assert [None] * 3 == [waiter.error for waiter in waiters]
    assert all(waiter.settled for waiter in waiters)


def test_requests_during_a_stop_load_the_model_again_after_the_exit(scheduler, effects):
    model = scheduler.load()
    unloading = scheduler.unload()
    waiters = [scheduler.request(), scheduler.request()]
    assert [("start", A), ("stop", A)] == effects.calls

    scheduler.exited(model, CRASH)

    assert [("start", A), ("stop", A), ("start", A)] == effects.calls
    assert unloading.settled
    assert not any(waiter.settled for waiter in waiters)
    scheduler.ready(effects.last)
    assert [effects.last] * 2 == [waiter.model for waiter in waiters]
    assert effects.last.in_flight == 2


def test_an_abandoned_request_during_a_stop_loads_nothing(scheduler, effects):
    scheduler.load()
    scheduler.unload()
    scheduler.abandon(scheduler.request())

    scheduler.exit()

    assert [("start", A), ("stop", A)] == effects.calls
    assert scheduler.models == []


def test_a_release_during_a_forced_stop_is_counted(scheduler):
    model = scheduler.load()
    waiter = scheduler.request()
    scheduler.unload(force=True)

    scheduler.release(waiter.model)
    scheduler.exit()

    assert scheduler.models == []
    assert model.in_flight == 0


# Shutting down


def test_shutting_down_stops_every_worker_once(scheduler, effects):
    scheduler.load(A)
    scheduler.load(B)

    scheduler.shut_down()
    scheduler.shut_down()

    assert [("stop", A), ("stop", B)] == effects.calls[2:]
    assert [ShuttingDown] * 2 == [type(reason) for reason in effects.reasons]


def test_shutting_down_rejects_requests_that_wait_for_a_load(scheduler, effects):
    waiter = scheduler.request()

    scheduler.shut_down()

    assert isinstance(waiter.error, ShuttingDown)
    assert [("start", A), ("stop", A)] == effects.calls


def test_shutting_down_rejects_requests_that_wait_for_a_stop(scheduler, effects):
    model = scheduler.load()
    unloading = scheduler.unload()
    waiter = scheduler.request()

    scheduler.shut_down()

    assert isinstance(waiter.error, ShuttingDown)
    scheduler.exited(model, CRASH)
    assert unloading.settled
    assert unloading.error is None
    assert [("start", A), ("stop", A)] == effects.calls


def test_requests_after_the_shutdown_are_rejected(scheduler, effects):
    scheduler.shut_down()

    assert isinstance(scheduler.request().error, ShuttingDown)
    assert effects.calls == []


# Several models


def test_models_are_independent(scheduler, effects):
    waiter_a, waiter_b = scheduler.request(A), scheduler.request(B)
    model_a, model_b = effects.started

    scheduler.ready(model_b)
    assert waiter_b.model is model_b
    assert not waiter_a.settled

    scheduler.exited(model_a, CRASH)
    assert CRASH is waiter_a.error
    assert [model_b] == scheduler.models
    assert model_b.in_flight == 1


def test_models_are_listed_in_the_order_of_their_requests(scheduler):
    for key in (B, A, "org/c"):
        scheduler.request(key)

    assert [B, A, "org/c"] == [model.key for model in scheduler.models]


def test_two_loads_of_a_model_are_different():
    assert ModelState(A) != ModelState(A)
