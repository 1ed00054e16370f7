import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine import host_sampler
from osaurusd.worker.engine import sampler as mlx_sampler
from osaurusd.worker.engine.host_sampler import Noise
from osaurusd.worker.engine.sampler import BatchSampler, SamplingState

PROBABILITIES = [0.05, 0.5, 0.15, 0.3]
DRAWS = 400


def make_state(
    temperature=1.0, seed=None, *, prompt_tokens=(), output_tokens=(), logprobs=None, entropy=1, index=0, **params
):
    return SamplingState(
        SamplingParams(temperature=temperature, seed=seed, **params),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        logprobs=logprobs,
        entropy=entropy,
        index=index,
    )


def to_logits(*rows):
    return mx.log(mx.array(rows))


class HostSampler:
    """`host_sampler.sample` with the interface of `BatchSampler`."""

    def __init__(self, states):
        self._states = states

    def sample(self, logits, masked=None):
        rows = iter([] if masked is None else np.array(masked) > -np.inf)
        bitmasks = [None if state.constraint is None else pack_bits(next(rows)) for state in self._states]
        return host_sampler.sample(self._states, np.array(logits.astype(mx.float32)), bitmasks.__getitem__)


class UndecidedConstraint:
    """A constraint that cannot tell whether a single token is allowed."""

    def allows(self, _):
        return False


def pack_bits(allowed):
    padded = np.zeros(-(-allowed.size // 32) * 32, bool)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


@pytest.fixture(params=[BatchSampler, HostSampler], ids=["mlx", "host"])
def sampler(request):
    """The samplers for GPUs and CPUs, which sample from the same distributions."""
    return request.param


@pytest.fixture(params=["mlx", "host"])
def compute_logprobs(request):
    """Both implementations, with MLX arrays as arguments."""
    if request.param == "mlx":
        return mlx_sampler.compute_logprobs
    return lambda logits, tokens, *rest: host_sampler.compute_logprobs(
        np.array(logits.astype(mx.float32)), np.array(tokens), *rest
    )


@pytest.fixture
def sample(sampler):
    """Sample one token for each state."""
    return lambda states, logits, masked=None: sampler(states).sample(logits, masked)[0].tolist()


@pytest.fixture
def count_draws(sample):
    """Return how often each token is drawn."""

    def count(probabilities=PROBABILITIES, **fields):
        states = [make_state(entropy=at, **fields) for at in range(DRAWS)]
        return Counter(sample(states, to_logits(*[probabilities] * DRAWS)))

    return count


@pytest.fixture
def stream(sampler):
    """Return consecutive draws of one sequence among equally likely tokens."""

    def draw(state, count=50, width=1000):
        one = sampler([state])
        return [one.sample(mx.zeros((1, width)))[0].item() for _ in range(count)]

    return draw


def is_plausible(counts, expected):
    """Whether draws follow the expected distribution, within four standard deviations."""
    return set(counts) <= set(expected) and all(
        abs(counts[token] - DRAWS * share) <= 4 * math.sqrt(DRAWS * share * (1 - share)) + 1e-9
        for token, share in expected.items()
    )


def distribution(*tokens, power=1.0):
    """Return the distribution over these tokens alone, raised to a power."""
    weights = {token: PROBABILITIES[token] ** power for token in tokens}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


# Temperature


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 9e-5])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_temperature_near_zero_is_greedy(sample, temperature, seed):
    states = [make_state(temperature, seed, top_p=0.1, top_k=2, min_p=0.5) for _ in range(2)]

    assert [1, 0] == sample(states, to_logits(PROBABILITIES, [0.7, 0.1, 0.1, 0.1]))


def test_a_tiny_temperature_does_not_overflow(count_draws):
    assert {1} == set(count_draws(temperature=1e-4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_scales_the_logits(count_draws, temperature):
    assert is_plausible(count_draws(temperature=temperature), distribution(0, 1, 2, 3, power=1 / temperature))


# Truncation


@pytest.mark.parametrize(
    ("params", "remaining"),
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
        # The first of the remaining two has 0.625.
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"min_p": 0.59, "top_p": 0.6}, [1]),
        ({"min_p": 0.2, "top_k": 2, "top_p": 0.99}, [1, 3]),
        ({"top_k": 3, "min_p": 0.59}, [1, 3]),
    ],
    ids=str,
)
def test_truncation_keeps_the_proportions_of_the_remaining_tokens(count_draws, params, remaining):
    assert is_plausible(count_draws(**params), distribution(*remaining))


@pytest.mark.parametrize(
    ("temperature", "params", "remaining"),
    [(1.0, {"top_p": 0.79}, {0}), (100.0, {"top_p": 0.79}, {0, 1, 2, 3}), (3.0, {"min_p": 0.3}, {0, 1, 2, 3})],
)
def test_the_temperature_is_applied_before_truncation(count_draws, temperature, params, remaining):
    assert remaining == set(count_draws([0.9, 0.04, 0.03, 0.03], temperature=temperature, **params))


@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 0.5}])
def test_ties_with_the_last_remaining_token_remain(count_draws, params):
    assert {1, 2, 3} == set(count_draws([0.1, 0.4, 0.25, 0.25], **params))


def test_each_row_is_truncated_by_its_own_parameters(sample):
    params = [{}, {"top_p": 0.79}, {"top_k": 1}, {"min_p": 0.2}, {"top_k": 3, "top_p": 0.6}, {"temperature": 0}]
    remaining = [{0, 1, 2, 3}, {1, 3}, {1}, {1, 2, 3}, {1, 3}, {1}]
    states = [make_state(entropy=at, **params[at % len(params)]) for at in range(200 * len(params))]

    drawn = sample(states, to_logits(*[PROBABILITIES] * len(states)))

    assert remaining == [set(drawn[at :: len(params)]) for at in range(len(params))]


@pytest.mark.parametrize("width", [1, 31, 512, 513, 5000])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 40}, {"min_p": 0.5}], ids=str)
def test_draws_follow_the_distribution_over_a_vocabulary_of_any_size(sample, width, params):
    """The mean of the drawn token ids shows an error in any part of the vocabulary."""
    logits = mx.random.normal((width,), key=mx.random.key(width)) * 2
    states = [make_state(entropy=at, **params) for at in range(400)]

    drawn = np.array(sample(states, mx.broadcast_to(logits, (400, width))))

    weights = np.exp(np.array(logits) - np.array(logits).max())
    ranked = np.sort(weights)[::-1]
    if "top_p" in params:
        weights[weights < ranked[np.searchsorted(np.cumsum(ranked), params["top_p"] * ranked.sum())]] = 0
    if "top_k" in params:
        weights[weights < ranked[: params["top_k"]].min()] = 0
    weights[weights < params.get("min_p", 0)] = 0
    weights /= weights.sum()
    assert set(drawn.tolist()) <= set(np.flatnonzero(weights).tolist())
    ids = np.arange(width)
    mean, variance = weights @ ids, weights @ ids**2 - (weights @ ids) ** 2
    assert abs(drawn.mean() - mean) <= 4.5 * math.sqrt(max(variance, 0) / 400) + 1e-3


@pytest.mark.parametrize("bits", [0, 2**63, 2**64 - 1])
def test_the_host_never_draws_a_token_of_weight_zero(bits):
    for start, end in [(0, 1), (600, 601), (1999, 2000), (100, 1500)]:
        weights = np.zeros(2000, np.float32)
        weights[start:end] = 0.1

        assert start <= host_sampler.draw_weighted(weights, Noise(bits, weights.size)) < end


def test_rounding_errors_do_not_change_what_the_host_draws():
    weights = np.random.default_rng(0).random(49152, np.float32)
    rounded = weights * np.random.default_rng(1).uniform(1 - 1e-6, 1 + 1e-6, weights.size).astype(np.float32)
    noise = [Noise(bits, weights.size) for bits in range(300)]
    draws = [[host_sampler.draw_weighted(each, one) for one in noise] for each in (weights, rounded)]
    assert draws[0] == draws[1]


# Bias and penalties


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"logit_bias": [(0, 0.5)]}, [2.5, 1.0, -1.0, 0.0]),
        ({"logit_bias": [(0, -100.0), (3, 1.5)]}, [-98.0, 1.0, -1.0, 1.5]),
        ({"frequency_penalty": 0.5}, [2.0, 1.0, -1.0, 0.0]),
        ({"frequency_penalty": 0.5, "output_tokens": [0, 0, 3]}, [1.0, 1.0, -1.0, -0.5]),
        ({"presence_penalty": 0.5, "output_tokens": [0, 0, 3]}, [1.5, 1.0, -1.0, -0.5]),
        ({"presence_penalty": 0.5, "prompt_tokens": [0, 1]}, [2.0, 1.0, -1.0, 0.0]),
        ({"frequency_penalty": -1.0, "output_tokens": [2]}, [2.0, 1.0, 0.0, 0.0]),
        ({"repetition_penalty": 2.0, "prompt_tokens": [0, 2, 2]}, [1.0, 1.0, -2.0, 0.0]),
        ({"repetition_penalty": 2.0, "output_tokens": [0, 2]}, [1.0, 1.0, -2.0, 0.0]),
        ({"repetition_penalty": 2.0, "prompt_tokens": [0], "output_tokens": [0, 0]}, [1.0, 1.0, -1.0, 0.0]),
        # The bias is applied first.
        ({"repetition_penalty": 2.0, "logit_bias": [(0, 2.0)], "prompt_tokens": [0]}, [2.0, 1.0, -1.0, 0.0]),
        (
            {
                "repetition_penalty": 2.0,
                "frequency_penalty": 0.5,
                "presence_penalty": 0.25,
                "output_tokens": [0, 0],
            },
            [-0.25, 1.0, -1.0, 0.0],
        ),
    ],
    ids=str,
)
def test_bias_and_penalties_change_the_logits_as_documented(sample, fields, expected):
    states = [make_state(entropy=at, **fields) for at in range(DRAWS)]

    counts = Counter(sample(states, mx.array([[2.0, 1.0, -1.0, 0.0]] * DRAWS)))

    weights = np.exp(expected)
    assert is_plausible(counts, dict(enumerate(weights / weights.sum())))


def test_sampled_tokens_are_penalized_in_later_draws(sampler):
    one = sampler([make_state(0, frequency_penalty=1.0)])

    assert [0, 1, 0, 1, 0, 2] == [one.sample(mx.array([[3.0, 2.5, 0.6]]))[0].item() for _ in range(6)]


def test_a_rewound_state_repeats_its_draws(sampler):
    logits = mx.array([[3.0, 2.5, 0.5]])
    state = make_state(seed=5, frequency_penalty=1.0, repetition_penalty=1.1, prompt_tokens=[2])
    one = sampler([state])
    output = [one.sample(logits)[0].item() for _ in range(12)]

    state.rewind(output[:4])

    one = sampler([state])
    assert output[4:] == [one.sample(logits)[0].item() for _ in range(8)]


def test_masked_tokens_are_never_sampled(sample):
    """Neither a bias nor a truncation that would keep them makes a difference."""
    masked = mx.array([[-mx.inf, -mx.inf, math.log(0.15), math.log(0.05)]] * DRAWS)
    params = SamplingParams(temperature=1, top_p=0.7, logit_bias=[(1, 50.0)])
    states = [SamplingState(params, constraint=UndecidedConstraint(), entropy=at) for at in range(DRAWS)]

    assert {2} == set(sample(states, to_logits(*[[0.05, 0.5, 0.15, 0.05]] * DRAWS), masked))


def test_only_constrained_rows_are_masked(sample):
    states = [
        make_state(0),
        SamplingState(SamplingParams(temperature=0), constraint=UndecidedConstraint()),
        make_state(0),
    ]

    assert [1, 0, 1] == sample(states, mx.array([[1.0, 2.0]] * 3), mx.array([[1.0, -mx.inf]]))


@pytest.mark.parametrize("fields", [{"frequency_penalty": 0.01}, {"logit_bias": [(0, -0.01)]}])
@pytest.mark.parametrize("neighbors", [0, 1])
def test_a_small_penalty_is_not_lost_in_half_precision(sample, fields, neighbors):
    states = [make_state(0, output_tokens=[0], **fields), *[make_state(0)] * neighbors]

    assert 1 == sample(states, mx.array([[30.0, 30.0]] * len(states), mx.bfloat16))[0]


# Seeds


@pytest.mark.parametrize("seed", [0, 1, -1, -(2**63), 2**63 - 1, 2**64 - 1])
def test_a_seed_makes_draws_reproducible(stream, seed):
    assert stream(make_state(seed=seed, entropy=1)) == stream(make_state(seed=seed, entropy=2))


def test_different_seeds_yield_different_draws(stream):
    streams = [tuple(stream(make_state(seed=seed))) for seed in (0, 1, 2, -1, 2**32, 2**33)]

    assert len(set(streams)) == len(streams)


def test_choices_with_the_same_seed_differ(stream):
    streams = [tuple(stream(make_state(seed=3, index=index))) for index in range(8)]

    assert len(set(streams)) == len(streams)


def test_consecutive_seeds_and_indexes_are_uncorrelated(stream):
    streams = [stream(make_state(seed=seed, index=index), 20) for seed in range(20) for index in range(4)]

    draws = [token for one in streams for token in one]
    assert len(set(draws)) > 0.75 * 1000 * (1 - math.exp(-len(draws) / 1000))


def test_consecutive_draws_with_a_seed_differ(stream):
    assert len(set(stream(make_state(seed=1)))) > 40


def test_seeded_draws_do_not_depend_on_the_batch_or_the_row(sampler, sample):
    logits = mx.random.normal((20, 50), key=mx.random.key(1)) * 2
    params = {"seed": 4, "temperature": 1.3, "top_p": 0.9, "frequency_penalty": 0.5, "min_p": 0.01}
    state = make_state(**params)
    separate = [sample([state], logits[at : at + 1])[0] for at in range(20)]

    for row, size in [(0, 2), (1, 2), (3, 7), (6, 7)]:
        states = [
            make_state(0),
            make_state(seed=9),
            make_state(top_k=3),
            make_state(0.7, min_p=0.3),
            make_state(presence_penalty=1.0),
            make_state(logprobs=2),
        ][: size - 1]
        states.insert(row, make_state(**params))
        one = sampler(states)
        batched = [one.sample(mx.broadcast_to(logits[at], (size, 50)))[0].tolist()[row] for at in range(20)]
        assert separate == batched, (row, size)


def test_without_a_seed_the_entropy_decides(stream):
    assert stream(make_state(entropy=1)) != stream(make_state(entropy=2))
    assert stream(make_state(entropy=1)) == stream(make_state(entropy=1))


# Log-probabilities


def test_log_probabilities_are_those_of_the_unchanged_logits(sampler):
    logits = mx.random.normal((3, 20), key=mx.random.key(2)) * 3
    states = [
        make_state(logprobs=3, logit_bias=[(4, 100.0)], top_k=1),
        make_state(0),
        SamplingState(SamplingParams(temperature=0), constraint=UndecidedConstraint(), logprobs=5),
    ]
    masked = mx.where(mx.arange(20) == 6, logits[2:], -mx.inf)

    tokens, logprobs = sampler(states).sample(logits, masked)

    assert [4, 6] == [tokens.tolist()[row] for row in (0, 2)]
    assert [0, 2] == logprobs.rows
    expected = np.array(logits) - np.log(np.exp(np.array(logits)).sum(axis=1, keepdims=True))
    for score, row, token in zip(logprobs.scores(), (0, 2), (4, 6), strict=True):
        assert score.logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        top = np.argsort(-expected[row])[:5]
        assert top.tolist() == [id_ for id_, _ in score.top]
        assert [logprob for _, logprob in score.top] == pytest.approx(expected[row, top].tolist(), abs=1e-5)


def test_log_probabilities_are_not_computed_unless_requested(sampler):
    _, logprobs = sampler([make_state(0), make_state()]).sample(to_logits(PROBABILITIES, PROBABILITIES))

    assert logprobs is None


@pytest.mark.parametrize(("top", "expected"), [(0, 0), (1, 1), (3, 3), (20, 3)])
def test_the_number_of_alternatives_is_limited_by_the_vocabulary(compute_logprobs, top, expected):
    (score,) = compute_logprobs(to_logits(PROBABILITIES), mx.array([2]), top, [0]).scores()

    assert score.logprob == pytest.approx(math.log(0.15))
    assert [1, 3, 2][:expected] == [id_ for id_, _ in score.top]


def test_log_probabilities_of_half_precision_logits_are_computed_in_float32(compute_logprobs):
    logits = mx.array([[10.0, 10.0, 9.0]], mx.bfloat16)

    (score,) = compute_logprobs(logits, mx.array([0]), 0, [0]).scores()

    assert score.logprob == pytest.approx(10 - math.log(2 * math.exp(10) + math.exp(9)), abs=1e-5)
