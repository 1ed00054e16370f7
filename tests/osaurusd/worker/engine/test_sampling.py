import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine.sampling import Batch, SamplingState, score

PROBABILITIES = [0.05, 0.5, 0.15, 0.3]
DRAWS = 1500


def row(temperature=1.0, seed=None, *, prompt=(), said=(), scored=None, entropy=1, number=0, **sampling):
    return SamplingState(
        SamplingParams(temperature=temperature, seed=seed, **sampling),
        prompt=prompt,
        said=said,
        scored=scored,
        entropy=entropy,
        number=number,
    )


def logs(*rows):
    """Logits, one row for each sequence."""
    return mx.log(mx.array(rows))


def choose(rows, logits, masked=None):
    chosen, _ = Batch(rows).choose(logits, masked)
    return chosen.tolist()


def draws(probabilities=PROBABILITIES, **sampling):
    """How often each token is chosen."""
    rows = [row(entropy=at, **sampling) for at in range(DRAWS)]
    return Counter(choose(rows, logs(*[probabilities] * DRAWS)))


def close(found, expected):
    """Whether the draws are spread as expected, give or take what chance may do: four standard deviations."""
    return set(found) <= set(expected) and all(
        abs(found[token] - DRAWS * share) <= 4 * math.sqrt(DRAWS * share * (1 - share)) + 1e-9
        for token, share in expected.items()
    )


def of(*kept, power=1.0):
    """The probabilities of these tokens alone, to some power."""
    weights = {token: PROBABILITIES[token] ** power for token in kept}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def stream(row, count=50, width=1000):
    """The choices of one sequence, one by one, among many equal tokens."""
    batch = Batch([row])
    return [batch.choose(mx.zeros((1, width)))[0].item() for _ in range(count)]


# Temperature


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 9e-5])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_temperature_of_nothing_takes_the_likeliest_token(temperature, seed):
    rows = [row(temperature, seed, top_p=0.1, top_k=2, min_p=0.5) for _ in range(2)]

    assert [1, 0] == choose(rows, logs(PROBABILITIES, [0.7, 0.1, 0.1, 0.1]))


def test_a_tiny_temperature_is_still_a_choice():
    assert {1} == set(draws(temperature=1e-4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_is_a_power(temperature):
    assert close(draws(temperature=temperature), of(0, 1, 2, 3, power=1 / temperature))


# What is cut off


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_p": 1e-6}, [1]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.79}, [1, 3]),
        ({"top_p": 0.81}, [1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 0.61}, [1]),
        ({"min_p": 0.59}, [1, 3]),
        ({"min_p": 0.2}, [1, 2, 3]),
        ({"min_p": 0.01}, [0, 1, 2, 3]),
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
        ({"top_k": 2, "top_p": 0.9}, [1, 3]),
        # Of the two that are left the first has 0.625.
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"min_p": 0.59, "top_p": 0.6}, [1]),
        ({"min_p": 0.2, "top_k": 2, "top_p": 0.99}, [1, 3]),
        ({"top_k": 3, "min_p": 0.59}, [1, 3]),
    ],
    ids=str,
)
def test_what_is_cut_off_leaves_the_rest_as_it_was(sampling, kept):
    assert close(draws(**sampling), of(*kept))


@pytest.mark.parametrize(
    ("temperature", "sampling", "kept"),
    [(1.0, {"top_p": 0.79}, {0}), (100.0, {"top_p": 0.79}, {0, 1, 2, 3}), (3.0, {"min_p": 0.3}, {0, 1, 2, 3})],
)
def test_the_temperature_comes_before_what_is_cut_off(temperature, sampling, kept):
    assert kept == set(draws([0.9, 0.04, 0.03, 0.03], temperature=temperature, **sampling))


@pytest.mark.parametrize("sampling", [{"top_k": 2}, {"top_p": 0.5}])
def test_what_is_as_likely_as_the_last_that_stays_stays_too(sampling):
    assert {1, 2, 3} == set(draws([0.1, 0.4, 0.25, 0.25], **sampling))


def test_each_row_cuts_off_what_it_asked_for():
    asked = [{}, {"top_p": 0.79}, {"top_k": 1}, {"min_p": 0.2}, {"top_k": 3, "top_p": 0.6}, {"temperature": 0}]
    kept = [{0, 1, 2, 3}, {1, 3}, {1}, {1, 2, 3}, {1, 3}, {1}]
    rows = [row(entropy=at, **asked[at % len(asked)]) for at in range(200 * len(asked))]

    chosen = choose(rows, logs(*[PROBABILITIES] * len(rows)))

    assert kept == [set(chosen[at :: len(asked)]) for at in range(len(asked))]


# Bias and penalties


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"logit_bias": [(0, 0.5)]}, [2.5, 1.0, -1.0, 0.0]),
        ({"logit_bias": [(0, -100.0), (3, 1.5)]}, [-98.0, 1.0, -1.0, 1.5]),
        ({"frequency_penalty": 0.5}, [2.0, 1.0, -1.0, 0.0]),
        ({"frequency_penalty": 0.5, "said": [0, 0, 3]}, [1.0, 1.0, -1.0, -0.5]),
        ({"presence_penalty": 0.5, "said": [0, 0, 3]}, [1.5, 1.0, -1.0, -0.5]),
        ({"presence_penalty": 0.5, "prompt": [0, 1]}, [2.0, 1.0, -1.0, 0.0]),
        ({"frequency_penalty": -1.0, "said": [2]}, [2.0, 1.0, 0.0, 0.0]),
        ({"repetition_penalty": 2.0, "prompt": [0, 2, 2]}, [1.0, 1.0, -2.0, 0.0]),
        ({"repetition_penalty": 2.0, "said": [0, 2]}, [1.0, 1.0, -2.0, 0.0]),
        ({"repetition_penalty": 2.0, "prompt": [0], "said": [0, 0]}, [1.0, 1.0, -1.0, 0.0]),
        # The bias comes first, and what it makes of a logit is then weakened.
        ({"repetition_penalty": 2.0, "logit_bias": [(0, 2.0)], "prompt": [0]}, [2.0, 1.0, -1.0, 0.0]),
        (
            {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25, "said": [0, 0]},
            [-0.25, 1.0, -1.0, 0.0],
        ),
    ],
    ids=str,
)
def test_bias_and_penalties_change_the_logits_as_documented(properties, expected):
    """Seen from the outside: the likelihoods of one draw of many rows, all of which have said the same."""
    rows = [row(entropy=at, **properties) for at in range(DRAWS)]

    found = Counter(choose(rows, mx.array([[2.0, 1.0, -1.0, 0.0]] * DRAWS)))

    weights = np.exp(expected)
    assert close(found, dict(enumerate(weights / weights.sum())))


def test_what_is_said_counts_from_then_on():
    one = row(0, frequency_penalty=1.0)
    batch = Batch([one])

    assert [0, 1, 0, 1, 0, 2] == [batch.choose(mx.array([[3.0, 2.5, 0.6]]))[0].item() for _ in range(6)]


def test_a_row_that_begins_again_counts_what_it_had_said():
    logits = mx.array([[3.0, 2.5, 0.5]])
    one, again = (row(seed=5, frequency_penalty=1.0, repetition_penalty=1.1, prompt=[2]) for _ in range(2))
    batch = Batch([one])
    said = [batch.choose(logits)[0].item() for _ in range(12)]

    batch = Batch([again])
    for _ in range(6):  # further than what counts
        batch.choose(logits)
    again.begin_again(said[:4])

    batch = Batch([again])
    assert said[4:] == [batch.choose(logits)[0].item() for _ in range(8)]


def test_a_mask_has_the_last_word():
    """What is masked stays so whatever bias it has, and what is cut off is cut off from what the mask leaves."""
    masked = mx.array([[-mx.inf, -mx.inf, math.log(0.15), math.log(0.05)]] * DRAWS)
    rows = [
        SamplingState(SamplingParams(temperature=1, top_p=0.7, logit_bias=[(1, 50.0)]), constraint=object(), entropy=at)
        for at in range(DRAWS)
    ]

    found = choose(rows, logs(*[[0.05, 0.5, 0.15, 0.05]] * DRAWS), masked)

    assert {2} == set(found)


def test_only_the_constrained_rows_are_masked():
    rows = [row(0), SamplingState(SamplingParams(temperature=0), constraint=object()), row(0)]

    assert [1, 0, 1] == choose(rows, mx.array([[1.0, 2.0]] * 3), mx.array([[1.0, -mx.inf]]))


@pytest.mark.parametrize("properties", [{"frequency_penalty": 0.01}, {"logit_bias": [(0, -0.01)]}])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_small_penalty_counts_in_half_precision_too(properties, neighbours):
    rows = [row(0, said=[0], **properties), *[row(0)] * neighbours]

    assert 1 == choose(rows, mx.array([[30.0, 30.0]] * len(rows), mx.bfloat16))[0]


# Seeds


@pytest.mark.parametrize("seed", [0, 1, -1, -(2**63), 2**63 - 1, 2**64 - 1])
def test_a_seed_repeats_whatever_the_entropy(seed):
    assert stream(row(seed=seed, entropy=1)) == stream(row(seed=seed, entropy=2))


def test_seeds_differ():
    streams = [tuple(stream(row(seed=seed))) for seed in (0, 1, 2, -1, 2**32, 2**33)]

    assert len(set(streams)) == len(streams)


def test_answers_of_one_seed_differ():
    streams = [tuple(stream(row(seed=3, number=number))) for number in range(8)]

    assert len(set(streams)) == len(streams)


def test_neighbouring_seeds_and_numbers_are_unrelated():
    streams = [stream(row(seed=seed, number=number), 20) for seed in range(20) for number in range(4)]

    choices = [choice for one in streams for choice in one]
    assert len(set(choices)) > 0.75 * 1000 * (1 - math.exp(-len(choices) / 1000))


def test_a_seeded_choice_does_not_repeat_itself_step_after_step():
    assert len(set(stream(row(seed=1)))) > 40


def test_a_seeded_row_gets_the_same_alone_in_any_batch_and_in_any_place():
    logits = mx.random.normal((20, 50), key=mx.random.key(1)) * 2
    sampling = {"seed": 4, "temperature": 1.3, "top_p": 0.9, "frequency_penalty": 0.5, "min_p": 0.01}
    one = row(**sampling)
    alone = [choose([one], logits[at : at + 1])[0] for at in range(20)]

    for place, size in [(0, 2), (1, 2), (3, 7), (6, 7)]:
        others = [row(0), row(seed=9), row(top_k=3), row(0.7, min_p=0.3), row(presence_penalty=1.0), row(scored=2)]
        rows = others[: size - 1]
        again = row(**sampling)
        rows.insert(place, again)
        batch = Batch(rows)
        found = [batch.choose(mx.broadcast_to(logits[at], (size, 50)))[0].tolist()[place] for at in range(20)]
        assert alone == found, (place, size)


def test_without_a_seed_entropy_decides():
    assert stream(row(entropy=1)) != stream(row(entropy=2))
    assert stream(row(entropy=1)) == stream(row(entropy=1))


# Scores


def test_scores_are_the_models_own_whatever_is_asked_for():
    logits = mx.random.normal((3, 20), key=mx.random.key(2)) * 3
    rows = [
        row(scored=3, logit_bias=[(4, 100.0)], top_k=1),
        row(0),
        SamplingState(SamplingParams(temperature=0), constraint=object(), scored=5),
    ]
    masked = mx.where(mx.arange(20) == 6, logits[2:], -mx.inf)

    chosen, scores = Batch(rows).choose(logits, masked)

    assert [4, 6] == [chosen.tolist()[at] for at in (0, 2)]
    assert [0, 2] == scores.rows
    truth = np.array(logits) - np.log(np.exp(np.array(logits)).sum(axis=1, keepdims=True))
    for told, at, token in zip(scores.told(), (0, 2), (4, 6), strict=True):
        assert told.logprob == pytest.approx(float(truth[at, token]), abs=1e-5)
        likeliest = np.argsort(-truth[at])[:5]
        assert likeliest.tolist() == [id_ for id_, _ in told.top]
        assert [logprob for _, logprob in told.top] == pytest.approx(truth[at, likeliest].tolist(), abs=1e-5)


def test_scores_are_not_asked_for_where_nobody_wants_any():
    _, scores = Batch([row(0), row()]).choose(logs(PROBABILITIES, PROBABILITIES))

    assert scores is None


@pytest.mark.parametrize(("most", "told"), [(0, 0), (1, 1), (3, 3), (20, 3)])
def test_as_many_of_the_likeliest_are_told_as_asked_for_and_as_there_are(most, told):
    (found,) = score(logs(PROBABILITIES), mx.array([2]), most, [0]).told()

    assert found.logprob == pytest.approx(math.log(0.15))
    assert [1, 3, 2][:told] == [id_ for id_, _ in found.top]


def test_scores_of_half_precision_logits_are_sums_in_full():
    logits = mx.array([[10.0, 10.0, 9.0]], mx.bfloat16)

    (found,) = score(logits, mx.array([0]), 0, [0]).told()

    assert found.logprob == pytest.approx(10 - math.log(2 * math.exp(10) + math.exp(9)), abs=1e-5)
