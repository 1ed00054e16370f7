import pytest

from osaurusd.inference.events import Completed
from osaurusd.pool.meter import RATE_SECONDS, Meters, Tally


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def meters(clock):
    return Meters(clock)


@pytest.fixture
def tally(meters):
    return Tally("m", meters)


def values(family):
    return {sample.suffix: sample.value for sample in family.samples() if "le" not in dict(sample.labels)}


def test_the_first_token_is_timed_from_the_request_and_the_others_from_each_other(tally, meters):
    timing = tally.begin()
    timing.delta(0, 100.5)
    timing.delta(0, 100.75)
    timing.delta(0, 101.0)

    assert {"_sum": 0.5, "_count": 1} == values(meters.first_token)
    assert {"_sum": 0.5, "_count": 2} == values(meters.gap)
    assert 0.5 == tally.first_token_seconds


def test_answers_side_by_side_are_timed_apart(tally, meters):
    timing = tally.begin()
    for index in (0, 1):
        timing.delta(index, 101.0)
    for index in (0, 1):
        timing.delta(index, 103.0)

    assert {"_sum": 4, "_count": 2} == values(meters.gap)
    assert {"_sum": 1, "_count": 1} == values(meters.first_token)


def test_a_complete_request_counts_what_the_worker_counted(tally, meters):
    timing = tally.begin()
    timing.delta(0, 101.0)
    timing.done(Completed(id=1, prompt_tokens=20, completion_tokens=7, cached_tokens=16))
    timing.close()

    assert [20, 16, 7] == [
        values(counter)[""] for counter in (meters.prompt_tokens, meters.cached_tokens, meters.completion_tokens)
    ]
    assert {("m", "hit"): 1} == meters.cache_lookups.values


def test_one_that_is_broken_off_counts_what_has_arrived(tally, meters):
    timing = tally.begin()
    timing.delta(0, 101.0)
    timing.delta(0, 102.0)
    timing.close()
    timing.close()

    assert {("m",): 2} == meters.completion_tokens.values


def test_the_rate_is_that_of_the_last_few_whole_seconds(tally, clock):
    timing = tally.begin()
    for second in range(100, 120):
        for _ in range(10):
            timing.delta(0, second + 0.5)
    clock.now = 120.0
    assert tally.rate() == 10

    clock.now = 120.0 + RATE_SECONDS
    assert tally.rate() == 0
