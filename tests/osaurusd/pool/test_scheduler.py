import pytest

from osaurusd.errors import Busy, LoadFailed, ModelUnloaded, ShuttingDown
from osaurusd.pool.resident import Resident
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.pool.timeline import CRASH, A, B, Timeline


@pytest.fixture
def scheduler():
    return Timeline()


@pytest.fixture
def effects(scheduler):
    return scheduler.effects


@pytest.fixture
def ask(scheduler):
    return scheduler.ask


@pytest.fixture
def unload(scheduler):
    return scheduler.unload


@pytest.fixture
def load(scheduler):
    return scheduler.load


# Starting


def test_the_first_request_starts_a_worker_and_waits(effects, scheduler, ask):
    ticket = ask()

    assert [("start", A)] == effects.calls
    assert not ticket.settled
    assert [(A, WorkerState.STARTING)] == [(resident.key, resident.state) for resident in scheduler.residents]


def test_requests_while_it_starts_share_one_load(effects, scheduler, ask):
    tickets = [ask() for _ in range(3)]

    scheduler.ready(effects.last)

    assert [("start", A)] == effects.calls
    assert [effects.last] * 3 == [ticket.resident for ticket in tickets]
    assert effects.last.in_flight == 3
    assert not effects.last.waiting


def test_those_who_wait_are_granted_in_the_order_they_came(effects, scheduler, ask):
    tickets = [ask() for _ in range(5)]

    scheduler.ready(effects.last)

    assert sorted(tickets, key=lambda ticket: ticket.turn) == tickets


def test_a_request_for_a_ready_model_is_granted_at_once(effects, load, ask):
    resident = load()

    ticket = ask()

    assert ticket.resident is resident
    assert resident.in_flight == 1
    assert [("start", A)] == effects.calls


def test_a_caller_who_is_gone_before_the_grant_does_not_count(effects, scheduler, ask, unload):
    ask(gone=True)
    stays = ask()

    scheduler.ready(effects.last)

    assert effects.last.in_flight == 1
    scheduler.released(stays.resident)
    assert unload().error is None


def test_a_caller_who_is_gone_when_the_model_is_ready_already_does_not_count(load, ask):
    resident = load()

    ask(gone=True)

    assert resident.in_flight == 0


def test_an_abandoned_request_is_forgotten_and_the_load_goes_on(effects, scheduler, ask):
    ticket, other = ask(), ask()

    scheduler.abandoned(ticket)
    scheduler.ready(effects.last)

    assert not ticket.settled
    assert other.resident is effects.last
    assert effects.last.in_flight == 1
    assert [("start", A)] == effects.calls


def test_a_request_that_was_settled_can_be_abandoned_without_effect(effects, scheduler, ask):
    ticket = ask()
    scheduler.ready(effects.last)

    scheduler.abandoned(ticket)

    assert effects.last.in_flight == 1


# Crashing


def test_a_crash_while_loading_refuses_all_who_wait(effects, scheduler, ask):
    tickets = [ask() for _ in range(3)]

    scheduler.exited(effects.last, CRASH)

    assert [CRASH] * 3 == [ticket.error for ticket in tickets]
    assert scheduler.residents == []


def test_a_load_that_fails_refuses_with_its_reason(effects, scheduler, ask):
    reason = LoadFailed("no such weights")
    ticket = ask()

    scheduler.exited(effects.last, reason)

    assert reason is ticket.error


def test_the_next_request_after_a_crash_starts_a_new_worker(effects, scheduler, ask):
    ask()
    first = effects.last
    scheduler.exited(first, CRASH)

    ticket = ask()
    scheduler.ready(effects.last)

    assert [("start", A), ("start", A)] == effects.calls
    assert effects.last is not first
    assert ticket.resident is effects.last


def test_a_crash_with_requests_in_flight_starts_nothing_by_itself(effects, scheduler, load, ask):
    resident = load()
    ask()

    scheduler.exited(resident, CRASH)

    assert [("start", A)] == effects.calls
    assert scheduler.residents == []


def test_a_release_after_the_worker_died_touches_nobody_else(effects, scheduler, load, ask):
    dead = load()
    late = ask()
    scheduler.exited(dead, CRASH)
    ask()
    scheduler.ready(effects.last)

    scheduler.released(late.resident)

    assert effects.last is not dead
    assert effects.last.in_flight == 1


# Unloading


def test_an_idle_model_is_stopped_and_the_ticket_granted_once_it_is_gone(effects, scheduler, load, unload):
    resident = load()

    ticket = unload()

    assert [("start", A), ("stop", A)] == effects.calls
    assert WorkerState.STOPPING == resident.state
    assert not ticket.settled
    scheduler.exited(resident, CRASH)
    assert ticket.resident is resident
    assert ticket.error is None
    assert scheduler.residents == []


def test_a_model_that_is_not_resident_is_unloaded_already(effects, unload):
    ticket = unload("org/absent")

    assert ticket.settled
    assert ticket.error is None
    assert effects.calls == []


def test_a_model_in_use_is_not_unloaded(effects, load, ask, unload):
    resident = load()
    ask()
    ask()

    ticket = unload()

    assert isinstance(ticket.error, Busy)
    assert "2 request(s)" in ticket.error.message
    assert A in ticket.error.message
    assert [("start", A)] == effects.calls
    assert WorkerState.READY == resident.state


def test_a_model_in_use_is_unloaded_by_force(effects, scheduler, load, ask, unload):
    resident = load()
    ask()

    ticket = unload(force=True)

    assert [("start", A), ("stop", A)] == effects.calls
    assert isinstance(effects.reasons[0], ModelUnloaded)
    scheduler.exited(resident, effects.reasons[0])
    assert ticket.error is None


def test_a_model_is_unloaded_once_its_requests_were_released(effects, scheduler, load, ask, unload):
    resident = load()
    scheduler.released(ask().resident)

    unload()

    assert [("start", A), ("stop", A)] == effects.calls
    assert resident.in_flight == 0


def test_a_model_that_is_starting_for_somebody_is_not_unloaded(effects, ask, unload):
    waiting = ask()

    ticket = unload()

    assert isinstance(ticket.error, Busy)
    assert not waiting.settled
    assert [("start", A)] == effects.calls


def test_a_model_that_is_starting_is_unloaded_by_force(effects, scheduler, ask, unload):
    waiting = ask()

    ticket = unload(force=True)

    assert isinstance(waiting.error, ModelUnloaded)
    assert [("start", A), ("stop", A)] == effects.calls
    assert not ticket.settled
    scheduler.exited(effects.last, CRASH)
    assert ticket.error is None


def test_a_model_that_is_starting_for_nobody_is_unloaded(effects, scheduler, ask, unload):
    scheduler.abandoned(ask())

    ticket = unload()

    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exited(effects.last, CRASH)
    assert ticket.settled
    assert ticket.error is None


def test_a_worker_that_gets_ready_after_it_was_told_to_stop_stays_stopping(effects, scheduler, ask, unload):
    ask()
    unload(force=True)

    scheduler.ready(effects.last)
    ticket = ask()

    assert WorkerState.STOPPING == effects.last.state
    assert not ticket.settled


def test_all_who_unload_are_granted_by_one_stop(effects, scheduler, load, unload):
    resident = load()

    tickets = [unload(), unload(), unload(force=True)]
    scheduler.exited(resident, CRASH)

    assert [("start", A), ("stop", A)] == effects.calls
    assert [None] * 3 == [ticket.error for ticket in tickets]
    assert all(ticket.settled for ticket in tickets)


def test_a_request_while_it_stops_starts_it_again_after_the_exit(effects, scheduler, load, ask, unload):
    resident = load()
    unloading = unload()
    tickets = [ask(), ask()]

    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exited(resident, CRASH)

    assert [("start", A), ("stop", A), ("start", A)] == effects.calls
    assert unloading.settled
    assert not any(ticket.settled for ticket in tickets)
    scheduler.ready(effects.last)
    assert [effects.last] * 2 == [ticket.resident for ticket in tickets]
    assert effects.last is not resident
    assert effects.last.in_flight == 2


def test_an_abandoned_request_while_it_stops_starts_nothing(effects, scheduler, load, ask, unload):
    resident = load()
    unload()
    scheduler.abandoned(ask())

    scheduler.exited(resident, CRASH)

    assert [("start", A), ("stop", A)] == effects.calls
    assert scheduler.residents == []


def test_a_release_while_it_stops_by_force_is_harmless(effects, scheduler, load, ask, unload):
    resident = load()
    ticket = ask()
    unload(force=True)

    scheduler.released(ticket.resident)
    scheduler.exited(resident, CRASH)

    assert scheduler.residents == []
    assert resident.in_flight == 0


# Shutting down


def test_shutting_down_stops_every_worker(effects, scheduler, load):
    load(A)
    load(B)

    scheduler.shut_down()

    assert [("stop", A), ("stop", B)] == effects.calls[2:]
    assert [ShuttingDown] * 2 == [type(reason) for reason in effects.reasons]


def test_shutting_down_refuses_those_who_wait_for_a_load(effects, scheduler, ask):
    ticket = ask()

    scheduler.shut_down()

    assert isinstance(ticket.error, ShuttingDown)
    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exited(effects.last, CRASH)
    assert scheduler.residents == []


def test_shutting_down_refuses_those_who_wait_for_a_stop(effects, scheduler, load, ask, unload):
    resident = load()
    unloading = unload()
    ticket = ask()

    scheduler.shut_down()

    assert isinstance(ticket.error, ShuttingDown)
    assert [("start", A), ("stop", A)] == effects.calls
    scheduler.exited(resident, CRASH)
    assert unloading.error is None
    assert unloading.settled
    assert [("start", A), ("stop", A)] == effects.calls


def test_a_request_after_the_shutdown_is_refused(effects, scheduler, ask):
    scheduler.shut_down()

    ticket = ask()

    assert isinstance(ticket.error, ShuttingDown)
    assert effects.calls == []


def test_shutting_down_twice_stops_once(effects, scheduler, load):
    load()

    scheduler.shut_down()
    scheduler.shut_down()

    assert [("start", A), ("stop", A)] == effects.calls


# Several models


def test_models_do_not_affect_each_other(effects, scheduler, ask, unload):
    ticket_a, ticket_b = ask(A), ask(B)
    resident_a, resident_b = effects.residents

    scheduler.ready(resident_b)
    assert ticket_b.resident is resident_b
    assert not ticket_a.settled

    scheduler.exited(resident_a, CRASH)
    assert CRASH is ticket_a.error
    assert [resident_b] == scheduler.residents
    assert resident_b.in_flight == 1

    assert isinstance(unload(B).error, Busy)
    assert unload(A).error is None


def test_residents_come_in_the_order_they_were_asked_for(scheduler, ask):
    for key in (B, A, "org/c"):
        ask(key)

    assert [B, A, "org/c"] == [resident.key for resident in scheduler.residents]


def test_a_resident_is_itself_and_not_its_key():
    assert Resident(A) != Resident(A)
