import pytest

from osaurusd.worker.engine.pace import LEAST_TOKENS, MOST_TOKENS, WORTHWHILE_TOKENS, Pace

MS = 0.001


def test_it_begins_with_what_it_was_told_and_follows_what_is_measured():
    pace = Pace(1 * MS)

    pace.prefilled(100, 300 * MS)
    assert pace.token_seconds == pytest.approx(1.6 * MS)
    for _ in range(30):
        pace.prefilled(100, 300 * MS)
    assert pace.token_seconds == pytest.approx(3 * MS, rel=1e-3)


def test_the_first_step_is_taken_as_it_is():
    pace = Pace(1 * MS)

    pace.decoded(40 * MS)

    assert pace.step_seconds == 40 * MS


def test_what_a_pass_takes_in_any_case_is_not_its_tokens_doing():
    pace = Pace(1 * MS, pass_seconds=50 * MS)

    for _ in range(30):
        pace.prefilled(45, (50 + 45 * 2) * MS)

    assert pace.token_seconds == pytest.approx(2 * MS, rel=1e-3)
    assert 25 == pace.pass_tokens
    assert (800 - 50) // 2 // 16 * 16 == pace.tokens(shared=False)


def test_no_pass_takes_longer_than_a_step_without_tokens():
    """The first measurement may have been taken while the machine was busy with something else."""
    pace = Pace(1 * MS, pass_seconds=500 * MS)

    pace.prefilled(100, 100 * MS)
    assert pace.token_seconds == pytest.approx((0.7 + 0.3 * 0.25) * MS)
    pace.decoded(40 * MS)
    pace.decoded(60 * MS)

    assert 40 * MS == pace.pass_seconds


@pytest.mark.parametrize(("tokens", "expected"), [(20, 10 * MS), (45, 16.25 * MS), (2000, 50 * MS)])
def test_a_first_prompt_waits_for_a_part_of_its_own_time(tokens, expected):
    assert Pace(1 * MS, pass_seconds=20 * MS).gathering_seconds(tokens) == pytest.approx(expected)


def test_a_short_pass_tells_nothing_of_a_tokens_time():
    pace = Pace(1 * MS)

    pace.prefilled(LEAST_TOKENS - 1, 10.0)

    assert pace.token_seconds == 1 * MS


@pytest.mark.parametrize(
    ("token", "expected"), [(1 * MS, 800), (0.5 * MS, 1600), (0.01 * MS, MOST_TOKENS), (1000 * MS, LEAST_TOKENS)]
)
def test_a_prompt_alone_is_processed_for_less_than_a_second_at_a_time(token, expected):
    assert expected == Pace(token, step_seconds=1 * MS).tokens(shared=False)


@pytest.mark.parametrize(
    ("token", "step", "expected"),
    [
        pytest.param(1 * MS, 0, WORTHWHILE_TOKENS, id="as few as are worth while"),
        pytest.param(1 * MS, 5 * MS, WORTHWHILE_TOKENS, id="fast steps"),
        pytest.param(1 * MS, 20 * MS, 80, id="four steps, in multiples of 16"),
        pytest.param(10 * MS, 20 * MS, 16, id="the stall budget, in multiples of 16"),
        pytest.param(10 * MS, 80 * MS, 32, id="slow steps: six, of which one is their own"),
        pytest.param(10 * MS, 200 * MS, 80, id="slower steps: four of them are worth while"),
        pytest.param(1000 * MS, 1 * MS, LEAST_TOKENS, id="the least there is"),
        pytest.param(0.001 * MS, 20 * MS, MOST_TOKENS, id="the most there is"),
    ],
)
def test_running_answers_stall_only_so_long(token, step, expected):
    assert expected == Pace(token, step_seconds=step).tokens(shared=True)


def test_what_tokens_take_behind_many_others_says_nothing_of_the_first_ones():
    pace = Pace(1 * MS)
    pace.context = 1500
    pace.prefilled(100, 1.0)

    assert 80 == pace.tokens(shared=False)
    pace.context = 4000
    assert 80 == pace.tokens(shared=False)
    pace.context = 0
    assert 800 == pace.tokens(shared=False)


@pytest.mark.parametrize(("stall", "expected"), [(0.05, 16), (0.2, 32), (10, 64)])
def test_the_stall_budget_can_be_set(stall, expected):
    """At 5 ms a token and 1 ms a step only the budget keeps a pass from being worth its while."""
    assert expected == Pace(5 * MS, stall, step_seconds=1 * MS).tokens(shared=True)
