import random

import pytest

from osaurusd.pool.policy import (
    Plan,
    can_never_fit,
    divide_budget,
    fits,
    insufficient_memory,
    make_room,
    pins_exceed_budget,
    unused,
)
from osaurusd.pool.state import ModelState
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.sizes import format_bytes


def idle(key, nbytes, last_used=0.0, *, pinned=False, state=WorkerState.READY):
    return ModelState(key, state, needs_bytes=nbytes, last_used=last_used, pinned=pinned)


def busy(key, nbytes, last_used=0.0, *, pinned=False):
    return ModelState(key, WorkerState.READY, needs_bytes=nbytes, last_used=last_used, in_flight=1, pinned=pinned)


def stopping(key, nbytes):
    return idle(key, nbytes, state=WorkerState.STOPPING)


@pytest.mark.parametrize(
    ("models", "needed", "plan"),
    [
        pytest.param([], 100, Plan(), id="an exact fit needs no eviction"),
        pytest.param([], 101, Plan(possible=False), id="more than the budget never fits"),
        pytest.param([idle("a", 40), idle("b", 40)], 20, Plan(), id="no eviction while there is room"),
        pytest.param([idle("a", 50, 2), idle("b", 50, 1)], 20, Plan(("b",)), id="least recently used first"),
        pytest.param([idle("a", 40, 1), idle("b", 40, 2)], 70, Plan(("a", "b")), id="as many as needed"),
        pytest.param([idle("a", 10, 1), idle("b", 90, 2)], 80, Plan(("b",)), id="no unnecessary eviction"),
        pytest.param([idle("a", 60, 1, pinned=True), idle("b", 40, 2)], 30, Plan(("b",)), id="pinned models stay"),
        pytest.param([idle("a", 80, pinned=True)], 30, Plan(possible=False), id="only pinned models in memory"),
        pytest.param([busy("a", 50, 1), idle("b", 50, 2)], 30, Plan(("b",)), id="idle before busy"),
        pytest.param([busy("a", 50, 1), idle("b", 30, 2)], 80, Plan(("b",), ("a",)), id="idle and busy together"),
        pytest.param(
            [busy("a", 90, 1), idle("b", 10, 2)], 60, Plan((), ("a",)), id="a large busy model saves idle ones"
        ),
        pytest.param([busy("a", 50, 2), busy("b", 50, 1)], 30, Plan((), ("b",)), id="least recently used busy model"),
        pytest.param([stopping("a", 100)], 100, Plan(), id="a stopping model is free already"),
        pytest.param([idle("a", 80, 1), idle("b", 40, 2)], 0, Plan(("a",)), id="over the budget without a request"),
    ],
)
def test_room_is_made_by_stopping_the_right_models(models, needed, plan):
    assert plan == make_room(100, models, needed)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_sufficient_and_minimal(seed):
    dice = random.Random(seed)
    for _ in range(200):
        models = [
            dice.choice([idle, busy])(str(n), dice.randint(1, 40), dice.random(), pinned=dice.random() < 0.3)
            for n in range(dice.randint(0, 6))
        ]
        leaving = [stopping(f"s{n}", 10) for n in range(dice.randint(0, 2))]
        needed = dice.randint(1, 120)

        plan = make_room(100, [*models, *leaving], needed)

        sizes = {model.key: model.needs_bytes for model in models}
        pinned = sum(model.needs_bytes for model in models if model.pinned)
        stopped = {*plan.evict, *plan.drain}
        rest = sum(size for key, size in sizes.items() if key not in stopped)
        assert plan.possible == (pinned + needed <= 100)
        if plan.possible:
            assert rest + needed <= 100
            assert all(rest + sizes[key] + needed > 100 for key in stopped)
        by_key = {model.key: model for model in models}
        assert all(not by_key[key].pinned for key in stopped)
        assert all(by_key[key].busy == (key in plan.drain) for key in stopped)


def test_the_rest_of_the_budget_is_divided_equally():
    assert {"a": 30, "b": 70} == divide_budget(100, {"a": 10, "b": 50})


def test_needs_over_the_budget_are_met_exactly():
    assert {"a": 80, "b": 50} == divide_budget(100, {"a": 80, "b": 50})


def test_no_models_divide_nothing():
    assert {} == divide_budget(100, {})


def test_a_model_fits_if_it_delays_no_model_queued_before_it():
    in_memory = [idle("a", 40), stopping("b", 30)]

    assert fits(100, idle("c", 30), in_memory, 0, {"b"})
    assert not fits(100, idle("c", 31), in_memory, 0, {"b"})
    assert fits(100, idle("c", 20), in_memory, 40, {"b"})
    assert not fits(100, idle("c", 21), in_memory, 40, {"b"})


def test_only_pinned_models_make_a_fit_impossible():
    assert not can_never_fit(100, idle("c", 60), [idle("a", 60), busy("b", 40, pinned=True)])
    assert can_never_fit(100, idle("c", 61), [busy("b", 40, pinned=True)])


@pytest.mark.parametrize(
    ("in_memory", "needed", "problem"),
    [
        ([], 101, "can never fit into the memory budget of 100 MB: 100 MB of 100 MB are free; no model is "
         "loaded"),
        ([idle("a", 60 * 10**6, pinned=True)], 50, "cannot fit alongside the pinned models: 40.0 MB of 100 MB are "
         "free; `a` holds 60.0 MB (idle, pinned)"),
        ([busy("a", 60 * 10**6)], 50, "but running requests did not release enough memory in time: 40.0 MB of 100 MB "
         "are free; `a` holds 60.0 MB (1 in flight)"),
    ],
)  # fmt: skip
def test_insufficient_memory_is_explained_with_numbers(in_memory, needed, problem):
    error = insufficient_memory(100 * 10**6, idle("c", needed * 10**6), in_memory)

    assert problem in error.message
    assert f"`c` needs {format_bytes(needed * 10**6)}" in error.message
    assert error.location == ("model",)


def test_pins_over_the_budget_are_explained_with_the_sum():
    error = pins_exceed_budget(100 * 10**6, {"a": 40 * 10**6, "b": 70 * 10**6})

    assert "`a` 40.0 MB + `b` 70.0 MB = 110 MB, more than the memory budget of 100 MB" in error.message


def test_only_ready_models_without_requests_and_pins_are_unused():
    waiting = idle("waiting", 1)
    waiting.waiters.append((1, None))
    models = [idle("a", 1), idle("pinned", 1, pinned=True), busy("busy", 1), stopping("stopping", 1), waiting]

    assert ["a"] == [model.key for model in unused(models)]
