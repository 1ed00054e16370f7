import math
from collections import Counter

import mlx.core as mx
import pytest

from osaurusd import ipc
from osaurusd.worker.sampling import make_sampler

PROBABILITIES = [0.05, 0.5, 0.15, 0.3]


def sampler(temperature=1.0, top_p=1.0, seed=None):
    return make_sampler(ipc.Sampling(temperature=temperature, top_p=top_p, seed=seed))


def logs(*rows):
    """Log-probabilities, one row for each sequence."""
    return mx.log(mx.array(rows))


def counts(sampler, probabilities=PROBABILITIES, draws=4000):
    """How often each token is chosen."""
    return Counter(sampler(logs(*[probabilities] * draws)).tolist())


def stream(sampler, count=50):
    """The choices of one sequence, one by one, among many equal tokens."""
    logprobs = mx.zeros((1, 1000))
    return [int(sampler(logprobs).item()) for _ in range(count)]


# Greedy


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 9e-5])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_temperature_of_nothing_takes_the_most_likely_token(temperature, seed):
    rows = logs(PROBABILITIES, [0.7, 0.1, 0.1, 0.1])

    assert sampler(temperature, 0.1, seed)(rows).tolist() == [1, 0]


def test_all_greedy_sequences_share_a_sampler():
    assert sampler(0.0, seed=1) is sampler(0.0, 0.5, seed=2)


def test_a_tiny_temperature_is_still_a_choice():
    assert {1} == set(counts(sampler(1e-4)))


# Temperature


def test_a_temperature_of_one_keeps_the_probabilities():
    found = counts(sampler(seed=1))

    for token, probability in enumerate(PROBABILITIES):
        assert found[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_the_lower_the_temperature_the_likelier_the_likeliest():
    found = [counts(sampler(temperature, seed=1))[1] for temperature in (2.0, 1.0, 0.5, 0.1)]

    assert sorted(found) == found
    assert len(set(found)) == 4


def test_a_temperature_is_a_power():
    found = counts(sampler(2.0, seed=1))

    roots = [math.sqrt(probability) for probability in PROBABILITIES]
    for token, root in enumerate(roots):
        assert found[token] / 4000 == pytest.approx(root / sum(roots), abs=0.03)


# top_p


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-6, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.81, {1, 2, 3}), (1.0, {0, 1, 2, 3})],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_top_p_keeps_the_smallest_set_that_is_likely_enough(top_p, kept, seed):
    assert kept == set(counts(sampler(top_p=top_p, seed=seed), draws=1000))


def test_top_p_keeps_the_proportions_of_what_it_keeps():
    found = counts(sampler(top_p=0.79, seed=1))

    assert found[1] / found[3] == pytest.approx(5 / 3, rel=0.15)


def test_top_p_looks_at_each_sequence_by_itself():
    rows = logs(*[PROBABILITIES, [0.3, 0.05, 0.5, 0.15]] * 500)

    chosen = sampler(top_p=0.79)(rows).tolist()

    assert {1, 3} == set(chosen[0::2])
    assert {0, 2} == set(chosen[1::2])


def test_top_p_is_taken_after_the_temperature():
    skewed = [0.9, 0.04, 0.03, 0.03]

    assert {0} == set(counts(sampler(1.0, 0.79), skewed, 500))
    assert {0, 1, 2, 3} == set(counts(sampler(100.0, 0.79), skewed, 500))


# Seeds


@pytest.mark.parametrize("seed", [0, 1, -1, -(2**63), 2**63 - 1, 2**64 - 1])
def test_a_seed_repeats(seed):
    assert stream(sampler(seed=seed)) == stream(sampler(seed=seed))


def test_seeds_differ():
    streams = [tuple(stream(sampler(seed=seed))) for seed in (0, 1, 2, -1, 2**32, 2**33)]

    assert len(set(streams)) == len(streams)


def test_a_seeded_choice_does_not_repeat_itself_step_after_step():
    assert len(set(stream(sampler(seed=1)))) > 40


def test_a_seed_does_not_depend_on_what_else_is_sampled():
    alone = stream(sampler(seed=1))
    one, other, unseeded = sampler(seed=1), sampler(seed=2), sampler()

    among = []
    for _ in range(50):
        mx.random.uniform(shape=(7,))
        stream(other, 1)
        among += stream(one, 1)
        stream(unseeded, 2)

    assert alone == among


def test_equal_requests_with_a_seed_each_have_a_state_of_their_own():
    first, second = sampler(seed=1), sampler(seed=1)
    stream(first, 10)

    assert stream(sampler(seed=1)) == stream(second)


# Without a seed


def test_equal_requests_without_a_seed_share_a_sampler():
    assert sampler(0.7, 0.9) is sampler(0.7, 0.9)
    assert sampler(0.7, 0.9) is not sampler(0.7, 0.8)
    assert sampler(0.7, 0.9) is not sampler(0.8, 0.9)


def test_a_shared_sampler_chooses_for_each_sequence_by_itself():
    assert len(set(sampler()(mx.zeros((50, 1000))).tolist())) > 40


def test_without_a_seed_nothing_repeats():
    assert stream(sampler()) != stream(sampler())
