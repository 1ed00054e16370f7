"""Decode batches, as the executor steps and merges them. Outputs are compared with those computed without any cache."""

import mlx.core as mx
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine import kv_cache
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend.constraint import ConstraintFailed
from tests.osaurusd.worker.engine.harness import GREEDY, UNLIMITED, AlternatingConstraint
from tests.osaurusd.worker.networks import (
    BATCHABLE,
    KINDS,
    WINDOW,
    expected_logprobs,
    greedy,
    prefill,
    sample,
    select,
    tokens,
)

PROMPTS = {
    "one token": [5],
    "short": [7, 8, 9],
    "longer than the window": list(range(20)),
    "repetitive": [11] * 5,
    "equal to another": [7, 8, 9],
    "longest": tokens(300),
}
RANDOM = SamplingParams(temperature=1.5, seed=11, top_p=0.95)


# Joining and leaving


@pytest.mark.parametrize("kind", sample(BATCHABLE))
def test_sequences_in_a_batch_get_the_same_output_as_separate_ones(make_decoder, kind):
    decoder = make_decoder(kind)

    ids = decoder.join(*PROMPTS.values())
    decoder.step(12)

    assert [6] == [len(lengths) for lengths in decoder.batch_lengths]
    assert all(decoder.is_greedy(id_) for id_ in ids)
    outputs = {tuple(decoder.tokens(id_)) for id_ in ids}
    assert len(outputs) == len(PROMPTS) - 1, "the prompts must make a difference"


@pytest.mark.parametrize("kind", sample(KINDS))
@pytest.mark.parametrize("name", ["one token", "longer than the window", "longest"])
def test_a_single_sequence_is_correct(make_decoder, kind, name):
    decoder = make_decoder(kind)

    (id_,) = decoder.join(PROMPTS[name])
    decoder.step(2 * WINDOW)

    assert decoder.is_greedy(id_)


@pytest.mark.parametrize("kind", select(BATCHABLE, "llama", "gemma3"))
@pytest.mark.parametrize(
    ("script", "padding_per_pass"),
    [
        ("JJLJLJLL", 50),
        ("JJJJLLLJ", UNLIMITED),
        pytest.param("JJJLLL", UNLIMITED, marks=pytest.mark.long),
        pytest.param("JLJJLLJL", UNLIMITED, marks=pytest.mark.long),
        pytest.param("JJJJLLLJ", 50, marks=pytest.mark.long),
        pytest.param("JJJLLL", 50, marks=pytest.mark.long),
        pytest.param("JJLJLJLL", UNLIMITED, marks=pytest.mark.long),
        pytest.param("JLJJLLJL", 50, marks=pytest.mark.long),
    ],
)
def test_sequences_that_join_and_leave_at_any_step_do_not_affect_others(make_decoder, kind, script, padding_per_pass):
    """J: the next prompt joins. L: the oldest sequence leaves. Three steps after each, so that windows rotate."""
    decoder = make_decoder(kind, padding_per_pass)
    prompts = [PROMPTS["short"], tokens(300), [5], tokens(20, 50)]
    running = []
    for action in script:
        if action == "J":
            running += decoder.join(prompts[len(decoder.prompts) % len(prompts)])
        else:
            decoder.leave(running.pop(0))
        decoder.step(3)

    assert all(decoder.is_greedy(id_) for id_ in decoder.prompts)


@pytest.mark.parametrize("kind", select(BATCHABLE, "llama", "gemma3"))
@pytest.mark.parametrize("leaving", [0, pytest.param(1, marks=pytest.mark.long), 2])
def test_a_sequence_that_leaves_a_batch_does_not_affect_the_others(make_decoder, kind, leaving):
    decoder = make_decoder(kind)
    ids = decoder.join(*(PROMPTS[name] for name in ("short", "longest", "one token")))
    decoder.step(4)

    decoder.leave(ids[leaving])
    decoder.step(2 * WINDOW)

    for at, id_ in enumerate(ids):
        assert len(decoder.tokens(id_)) == (4 if at == leaving else 4 + 2 * WINDOW)
        assert decoder.is_greedy(id_)


@pytest.mark.parametrize("kind", select(BATCHABLE, "llama", "gemma3"))
def test_several_sequences_may_join_a_batch_at_once(make_decoder, kind):
    decoder = make_decoder(kind)
    ids = decoder.join(PROMPTS["short"], PROMPTS["longest"])
    decoder.step(2 * WINDOW)

    ids += decoder.join(PROMPTS["one token"], PROMPTS["longer than the window"], PROMPTS["longest"])
    decoder.step(2 * WINDOW)

    assert all(decoder.is_greedy(id_) for id_ in ids)


def test_a_sequence_may_leave_a_batch_before_its_first_token(make_decoder):
    decoder = make_decoder()
    first, second = decoder.join_together(PROMPTS["short"], PROMPTS["longest"])

    decoder.leave(first)
    decoder.step(4)

    assert [] == decoder.tokens(first)
    assert greedy(decoder.network, PROMPTS["longest"], 4) == decoder.tokens(second)


@pytest.mark.parametrize("kind", select(BATCHABLE, "llama", "gemma3"))
@pytest.mark.parametrize("running", [0, pytest.param(1, marks=pytest.mark.long), 2])
def test_prompts_that_were_processed_together_join_with_one_cache(make_decoder, kind, running):
    decoder = make_decoder(kind)
    before = decoder.join(*[tokens(40, 77)] * running)
    decoder.step(2 * WINDOW)

    ids = decoder.join_together(tokens(30), tokens(12, 500), tokens(30, 900))
    decoder.step(2 * WINDOW)

    assert all(decoder.is_greedy(id_) for id_ in [*before, *ids])


def test_a_decoder_can_be_reused_after_all_sequences_have_left(make_decoder):
    decoder = make_decoder()
    decoder.leave(*decoder.join(PROMPTS["short"], [5]))
    decoder.step()
    assert [] == decoder.executor.batches

    (id_,) = decoder.join(PROMPTS["longest"])
    decoder.step(4)

    assert greedy(decoder.network, PROMPTS["longest"], 4) == decoder.tokens(id_)


def test_removing_an_unknown_sequence_is_ignored(make_decoder):
    decoder = make_decoder()
    (id_,) = decoder.join(PROMPTS["short"])

    decoder.leave(99)
    decoder.step(3)

    assert greedy(decoder.network, PROMPTS["short"], 3) == decoder.tokens(id_)


# Several batches


@pytest.mark.parametrize("padding_per_pass", [UNLIMITED, 10, 9])
def test_each_planned_batch_is_one_forward_pass(make_decoder, padding_per_pass):
    decoder = make_decoder("llama", padding_per_pass)
    decoder.join(tokens(100), tokens(110), tokens(300))
    sizes = [len(batch) for batch in decoder.assignment.batches]
    decoder.step(2)  # the first one only returns tokens, and the second one has two passes

    decoder.network.shapes.clear()
    decoder.step(3)

    assert [(size, 1) for size in sizes] * 3 == decoder.network.shapes
    assert [105, 115, 305] == [length for lengths in decoder.batch_lengths for length in lengths]


def test_batches_are_merged_when_the_plan_merges_them(make_decoder):
    decoder = make_decoder("llama", 40)
    ids = [*decoder.join(*[tokens(100)] * 3), *decoder.join(tokens(120))]
    decoder.step(2)
    assert [[102] * 3, [122]] == decoder.batch_lengths

    decoder.leave(ids[0])
    decoder.step(10)

    assert [[112, 112, 132]] == decoder.batch_lengths
    for id_ in ids[1:]:
        assert greedy(decoder.network, decoder.prompts[id_], 12) == decoder.tokens(id_)


# Sampling within a batch

GPU = Device("cuda")
DEVICES = pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
"""Where batches are sampled in different ways. Both compute on this machine's device."""


def mixed_states():
    """Return sampling states of all kinds, and their prompts."""
    penalized = SamplingParams(temperature=0, frequency_penalty=1.0)
    biased = SamplingParams(temperature=1.0, logit_bias=[(3, 2.0)], min_p=0.01)
    return [
        (PROMPTS["short"], SamplingState(GREEDY)),
        (PROMPTS["longest"], SamplingState(RANDOM, logprobs=3)),
        (PROMPTS["one token"], SamplingState(GREEDY, constraint=AlternatingConstraint())),
        (PROMPTS["short"], SamplingState(RANDOM, constraint=AlternatingConstraint(), logprobs=0)),
        (PROMPTS["longest"], SamplingState(penalized, logprobs=20)),
        (PROMPTS["one token"], SamplingState(biased, entropy=5)),
    ]


def rounded(outputs):
    """Return tokens and scores, rounded so that the batch size does not matter."""
    return [
        (one.token, one.score and (round(one.score.logprob, 3), [token for token, _ in one.score.top]))
        for one in outputs
    ]


@pytest.mark.parametrize(
    ("order", "device"),
    [
        ([0, 1, 2, 3, 4, 5], CPU),
        ([5, 3, 1, 4, 2, 0], GPU),
        pytest.param([0, 1, 2, 3, 4, 5], GPU, marks=pytest.mark.long),
        pytest.param([5, 3, 1, 4, 2, 0], CPU, marks=pytest.mark.long),
    ],
    ids=["in order, cpu", "mixed, gpu", "in order, gpu", "mixed, cpu"],
)
def test_sampling_does_not_depend_on_the_other_sequences(make_decoder, order, device):
    expected = []
    for prompt, state in mixed_states():
        decoder = make_decoder(device=device)
        id_ = decoder.join_state(prompt, state)
        decoder.step(12)
        expected.append(rounded(decoder.outputs[id_]))
    decoder, states = make_decoder(device=device), mixed_states()
    ids = {}

    for at in order:
        ids[at] = decoder.join_state(*states[at])
        decoder.step()
    decoder.step(12)

    for at, id_ in ids.items():
        assert expected[at] == rounded(decoder.outputs[id_])[:12], at


def test_choices_that_continue_one_prompt_are_sampled_independently(make_decoder):
    decoder = make_decoder()
    cache, logits = prefill(decoder.network, PROMPTS["longest"])
    states = [SamplingState(RANDOM, index=index) for index in range(3)]

    ids = decoder.join_batch(
        [PROMPTS["longest"]] * 3,
        states,
        decoder.layout.merge([cache] * 3),
        mx.concatenate([logits] * 3),
        merged=True,
    )
    decoder.step(10)

    for index, id_ in enumerate(ids):
        separate = make_decoder()
        other = separate.join_state(PROMPTS["longest"], SamplingState(RANDOM, index=index))
        separate.step(10)
        assert separate.tokens(other) == decoder.tokens(id_)
    assert len({tuple(decoder.tokens(id_)) for id_ in ids}) == 3


@DEVICES
@pytest.mark.parametrize("leaving", [0, 3, 5])
def test_scores_and_constraints_stay_with_their_sequences(make_decoder, leaving, device):
    decoder = make_decoder(device=device)
    states = mixed_states()
    ids = [decoder.join_state(prompt, state) for prompt, state in states]
    decoder.step(3)

    decoder.leave(ids[leaving])
    decoder.step(5)

    for at, (id_, (prompt, state)) in enumerate(zip(ids, states, strict=True)):
        output, scores = decoder.tokens(id_), [one.score for one in decoder.outputs[id_]]
        assert len(output) == (3 if at == leaving else 8)
        if state.constraint is not None:
            assert [1, 0, 1, 0, 1, 0, 1, 0][: len(output)] == [token % 2 for token in output]
        if state.logprobs is None:
            assert [None] * len(output) == scores
        else:
            logprobs = [score.logprob for score in scores]
            assert expected_logprobs(decoder.network, prompt, output) == pytest.approx(logprobs, abs=1e-3)
            assert {state.logprobs} == {len(score.top) for score in scores}


def test_a_constraint_receives_each_token_once(make_decoder):
    decoder = make_decoder()
    constraint = AlternatingConstraint()
    (id_,) = decoder.join(PROMPTS["short"], constraint=constraint)
    decoder.join(PROMPTS["longest"])
    decoder.step(5)

    assert decoder.tokens(id_) == constraint.tokens


@pytest.mark.parametrize("neighbors", [0, 2])
@pytest.mark.parametrize("params", [GREEDY, RANDOM], ids=["greedy", "random"])
def test_on_a_cpu_first_tokens_do_not_wait_for_the_pass_after_them(make_decoder, neighbors, params):
    decoder = make_decoder("llama")
    others = decoder.join(*[PROMPTS["longest"]] * neighbors)
    decoder.step(3 if others else 0)
    decoder.network.shapes.clear()

    (id_,) = decoder.join(PROMPTS["short"], params=params)
    decoder.network.shapes.clear()
    decoder.step()

    assert 1 == len(decoder.tokens(id_))
    assert [] == decoder.network.shapes
    decoder.step(3)
    assert [(1 + neighbors, 1)] * 4 == decoder.network.shapes
    assert all(decoder.is_greedy(other) for other in others)
    assert params is RANDOM or decoder.is_greedy(id_)


@DEVICES
@pytest.mark.parametrize("neighbors", [0, 2])
def test_a_failed_constraint_is_reported_once_and_does_not_affect_others(make_decoder, neighbors, device):
    decoder = make_decoder(device=device)
    others = decoder.join(*[PROMPTS["longest"]] * neighbors)
    (id_,) = decoder.join(PROMPTS["short"], constraint=AlternatingConstraint(limit=2))

    decoder.step(2)
    assert {} == decoder.executor.take_failed()
    decoder.step()

    assert {id_: "limit reached"} == decoder.executor.take_failed()
    assert {} == decoder.executor.take_failed()
    decoder.leave(id_)
    decoder.step(3)
    for other in others:
        assert greedy(decoder.network, PROMPTS["longest"], 6) == decoder.tokens(other)


@pytest.mark.parametrize("params", [GREEDY, RANDOM], ids=["greedy", "random"])
@pytest.mark.parametrize("neighbors", [0, 2])
def test_a_constraint_that_allows_no_token_is_reported_before_any_token(make_decoder, params, neighbors):
    class FailingConstraint(AlternatingConstraint):
        def allows(self, _):
            return False

        def fill(self, row):
            raise ConstraintFailed("unsatisfiable")

    decoder = make_decoder()
    others = decoder.join(*[PROMPTS["longest"]] * neighbors)

    (id_,) = decoder.join(PROMPTS["short"], params=params, constraint=FailingConstraint())
    decoder.step()

    assert {id_: "unsatisfiable"} == decoder.executor.take_failed()
    assert [] == decoder.tokens(id_)
    for other in others:
        assert greedy(decoder.network, PROMPTS["longest"], 1) == decoder.tokens(other)


@pytest.mark.parametrize("others", [(), (RANDOM,)], ids=["alone", "beside a random one"])
def test_allowed_tokens_are_computed_only_if_the_most_likely_one_is_not_allowed(make_decoder, others):
    class CountingConstraint(AlternatingConstraint):
        rejected = filled = 0

        def allows(self, token):
            allowed = super().allows(token)
            self.rejected += not allowed
            return allowed

        def fill(self, row):
            self.filled += 1
            super().fill(row)

    decoder = make_decoder()
    constraint = CountingConstraint()
    for params in others:
        decoder.join(PROMPTS["short"], params=params)
    (id_,) = decoder.join(PROMPTS["short"], constraint=constraint)
    decoder.step(12)

    assert [1, 0] * 6 == [token % 2 for token in decoder.tokens(id_)]
    assert 0 < constraint.filled == constraint.rejected < 12


# Reading caches


@pytest.mark.parametrize("kind", select(BATCHABLE, "llama", "gemma3"))
@pytest.mark.parametrize("neighbors", [0, 2])
def test_a_sequence_can_be_resumed_from_its_cache(make_decoder, kind, neighbors):
    decoder = make_decoder(kind)
    decoder.join(*[tokens(50), [5]][:neighbors])
    (id_,) = decoder.join(PROMPTS["longest"])
    decoder.step(2 * WINDOW)
    sequence = [*PROMPTS["longest"], *decoder.tokens(id_)]

    reader = decoder.executor.reader(id_)
    parts = [reader.pack(0, 200), reader.pack(200, len(sequence))]
    states = reader.copy_states() if decoder.layout.has_states else None
    decoder.step(3)  # must not change the copies

    restored = kv_cache.restore(decoder.layout, decoder.network, parts, len(sequence), states)
    _, expected = prefill(decoder.network, [*sequence, 5])
    assert mx.allclose(expected, decoder.network(mx.array([[5]]), cache=restored)[:, -1], atol=1e-4).item()
