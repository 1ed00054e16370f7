import random

import pytest

from osaurusd.pool.policy import Holding, Plan, make_room, shares


def idle(key, nbytes, last_used=0.0, **facts):
    return Holding(key, nbytes, last_used, **facts)


def busy(key, nbytes, last_used=0.0):
    return Holding(key, nbytes, last_used, busy=True)


@pytest.mark.parametrize(
    ("holdings", "needed", "plan"),
    [
        pytest.param([], 100, Plan(), id="an empty machine takes what fits exactly"),
        pytest.param([], 101, Plan(possible=False), id="what is larger than the budget never fits"),
        pytest.param([idle("a", 40), idle("b", 40)], 20, Plan(), id="nobody goes while there is room"),
        pytest.param([idle("a", 50, 2), idle("b", 50, 1)], 20, Plan(("b",)), id="the least recently used goes"),
        pytest.param([idle("a", 40, 1), idle("b", 40, 2)], 70, Plan(("a", "b")), id="as many as needed"),
        pytest.param([idle("a", 10, 1), idle("b", 90, 2)], 80, Plan(("b",)), id="one that goes in vain stays"),
        pytest.param([idle("a", 60, 1, pinned=True), idle("b", 40, 2)], 30, Plan(("b",)), id="a pinned one stays"),
        pytest.param([idle("a", 80, pinned=True)], 30, Plan(possible=False), id="only pinned ones in the way"),
        pytest.param([busy("a", 50, 1), idle("b", 50, 2)], 30, Plan(("b",)), id="idle before busy, however recent"),
        pytest.param([busy("a", 50, 1), idle("b", 30, 2)], 80, Plan(("b",), ("a",)), id="idle and busy together"),
        pytest.param([busy("a", 90, 1), idle("b", 10, 2)], 60, Plan((), ("a",)), id="a busy one makes the idle stay"),
        pytest.param([busy("a", 50, 2), busy("b", 50, 1)], 30, Plan((), ("b",)), id="the busy one used longest ago"),
        pytest.param([idle("a", 100, leaving=True)], 100, Plan(), id="one that leaves already makes its room"),
        pytest.param([idle("a", 80, 1), idle("b", 40, 2)], 0, Plan(("a",)), id="nothing wanted, but over the budget"),
    ],
)
def test_who_goes_to_make_room(holdings, needed, plan):
    assert plan == make_room(100, holdings, needed)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_makes_room_and_spares_whom_it_can(seed):
    dice = random.Random(seed)
    for _ in range(200):
        holdings = [
            Holding(str(n), dice.randint(1, 40), dice.random(), *(dice.random() < 0.3 for _ in range(3)))
            for n in range(dice.randint(0, 6))
        ]
        needed = dice.randint(1, 120)
        plan = make_room(100, holdings, needed)
        sizes = {holding.key: holding.needs_bytes for holding in holdings if not holding.leaving}
        pinned = sum(holding.needs_bytes for holding in holdings if holding.pinned and not holding.leaving)
        gone = [*plan.evict, *plan.drain]
        rest = sum(size for key, size in sizes.items() if key not in gone)

        assert plan.possible == (pinned + needed <= 100)
        if plan.possible:
            assert rest + needed <= 100
            assert all(rest + sizes[key] + needed > 100 for key in gone)
        assert not any(holding.pinned or holding.leaving for holding in holdings if holding.key in gone)
        assert all(holding.busy == (holding.key in plan.drain) for holding in holdings if holding.key in gone)


def test_what_nobody_needs_is_shared_alike():
    assert {"a": 30, "b": 70} == shares(100, {"a": 10, "b": 50})


def test_needs_beyond_the_budget_are_met_and_nothing_more():
    assert {"a": 80, "b": 50} == shares(100, {"a": 80, "b": 50})


def test_nobody_has_no_share():
    assert {} == shares(100, {})
