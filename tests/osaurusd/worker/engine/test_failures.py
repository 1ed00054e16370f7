"""Cancellation, and failures of prompts, outputs, constraints and the model."""

import math

import mlx.core as mx
import pytest

from osaurusd.inference.events import Delta, Logprob, TokenLogprob
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import framing
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.planner import MAX_SEQUENCES
from osaurusd.worker.engine.probe import PROBE_TOKENS, Probe
from osaurusd.worker.frontend.text_assembler import OutputDelta
from tests.osaurusd.worker.engine.harness import (
    GREEDY,
    WITH_CACHE,
    AlternatingConstraint,
    FakeOutput,
    build_request,
    completed_ids,
    echo,
    events_of,
    failures_in,
    finish_reason_of,
    first_new_token,
    run,
    run_until,
    step,
    to_text,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import PROMPT, VOCABULARY, RecordingNetwork, greedy, tokens

LONG = tokens(300)
RANDOM = SamplingParams(temperature=1.5, seed=11)


@pytest.fixture
def recording(network):
    return RecordingNetwork(network())


@pytest.fixture
def engine(recording):
    return Engine(recording, [], WITH_CACHE)


@pytest.fixture
def chunk_tokens(monkeypatch):
    """Sets the prefill budget of an engine."""

    def chunk_tokens(engine, count):
        monkeypatch.setattr(engine.chunk_sizer, "tokens", lambda *, shared: count)

    return chunk_tokens


# Cancellation


# What happens to a request before it is cancelled.
STAGES = [
    pytest.param(lambda engine: [], id="waiting"),
    pytest.param(lambda engine: engine.prefill(), id="prefilling"),
    pytest.param(lambda engine: [*engine.prefill(), *engine.prefill(), *engine.prefill()], id="prefilled"),
    pytest.param(lambda engine: run_until(engine, 1), id="at its first token"),
    pytest.param(lambda engine: run_until(engine, 1, 5), id="decoding"),
]


@pytest.mark.parametrize("advance", STAGES)
@pytest.mark.parametrize("n", [1, 3])
def test_a_cancelled_request_causes_no_further_passes(engine, recording, network, chunk_tokens, advance, n):
    chunk_tokens(engine, 150)
    engine.add(build_request(1, LONG, 100, n=n))
    advance(engine)
    recording.shapes.clear()

    engine.cancel(1)

    assert not engine.busy
    assert [] == step(engine) == recording.shapes
    assert greedy(network(), LONG, 4) == tokens_of(run(engine, build_request(2, LONG, 4)), 2)


@pytest.mark.parametrize("advance", STAGES)
def test_cancelling_a_request_does_not_affect_others(engine, network, chunk_tokens, advance):
    chunk_tokens(engine, 150)
    engine.add(build_request(2, PROMPT, 30))
    frames = run_until(engine, 2, 3)
    engine.add(build_request(1, LONG, 100, n=2))
    frames += advance(engine)

    engine.cancel(1)

    after = run(engine)
    assert {2} == {frame.id for frame in after}
    assert greedy(network(), PROMPT, 30) == tokens_of(frames + after, 2)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_cancelling_a_request_lets_the_next_start_where_sequences_cannot_batch(network, steps):
    engine = Engine(network("llama4"), [], WITH_CACHE)
    engine.add(build_request(1, LONG, 100, n=2))
    engine.add(build_request(2, PROMPT, 5))
    for _ in range(steps):
        step(engine)

    engine.cancel(1)

    frames = run(engine)
    assert {2} == {frame.id for frame in frames}
    assert greedy(network("llama4"), PROMPT, 5) == tokens_of(frames, 2)


def test_a_cancelled_choice_is_stored_in_the_prefix_cache(engine):
    engine.add(build_request(1, LONG, 100))
    output = tokens_of(run_until(engine, 1, 20), 1)
    engine.cancel(1)

    frames = run(engine, build_request(2, [*LONG, *output, 1, 2, 3], 2))

    assert 300 + len(output) == usage_of(frames, 2).cached_tokens


def test_a_waiting_request_takes_the_place_of_a_cancelled_one(engine):
    for id_ in range(MAX_SEQUENCES + 1):
        engine.add(build_request(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES):
        run_until(engine, id_)

    engine.cancel(3)

    assert 3 not in {frame.id for frame in run_until(engine, MAX_SEQUENCES, 2)}


def test_cancelling_an_unknown_or_completed_request_is_ignored(engine, network):
    engine.cancel(99)
    frames = run(engine, build_request(1, PROMPT, 3))
    engine.cancel(1)

    assert greedy(network(), PROMPT, 3) == tokens_of(frames, 1)


def test_all_requests_can_be_dropped_in_any_state(engine, network, chunk_tokens):
    chunk_tokens(engine, 64)
    for id_ in range(MAX_SEQUENCES - 2):
        engine.add(build_request(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES - 2):
        run_until(engine, id_)
    engine.add(build_request(100, LONG, 60))
    engine.add(build_request(101, tokens(300, 9000), 60, n=2))
    step(engine)

    lost = engine.drop_all()

    assert [*range(MAX_SEQUENCES - 2), 100, 101] == sorted(lost)
    assert not engine.busy
    assert [] == step(engine)
    assert greedy(network(), PROMPT, 4) == tokens_of(run(engine, build_request(1, PROMPT, 4)), 1)


# Outputs


def test_unreadable_output_fails_only_its_request(engine, network):
    output = greedy(network(), PROMPT, 8)
    unreadable = output[first_new_token(output)]
    engine.add(build_request(1, PROMPT, 30, n=3, output=lambda: FakeOutput(unreadable=unreadable)))

    frames = run(engine, build_request(2, LONG, 10), build_request(3, [5], 10))

    (failed,) = failures_in(frames).values()
    assert (1, "the output could not be parsed: ValueError: unreadable") == (failed.id, failed.message)
    assert greedy(network(), LONG, 10) == tokens_of(frames, 2)
    assert greedy(network(), [5], 10) == tokens_of(frames, 3)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_output_that_fails_to_finish_fails_only_its_request(network, ends, n):
    output = greedy(network(), PROMPT, 8)
    at = first_new_token(output)
    engine = Engine(network(), [output[at]] if ends else [], WITH_CACHE)
    request = build_request(1, PROMPT, at + 1, n=n, output=lambda: FakeOutput(fails_to_finish=True))

    frames = run(engine, build_request(2, [5], 10, constraint=AlternatingConstraint()), request)

    (failed,) = failures_in(frames).values()
    assert (1, "the output could not be parsed: ValueError: unfinished") == (failed.id, failed.message)
    assert [2] == completed_ids(frames)


def test_a_failing_constraint_fails_only_its_request(engine, network):
    engine.add(build_request(1, PROMPT, 30, n=2, constraint=AlternatingConstraint(limit=4)))

    frames = run(engine, build_request(2, LONG, 10))

    (failed,) = failures_in(frames).values()
    assert (1, ErrorCode.INVALID_REQUEST) == (failed.id, failed.code)
    assert "limit reached" in failed.message
    assert greedy(network(), LONG, 10) == tokens_of(frames, 2)


class LogprobOutput(FakeOutput):
    """Output that reports the log-probabilities of each token."""

    def add(self, token, score=None):
        top = [Logprob(text="", bytes=[], logprob=logprob) for _, logprob in score.top]
        return OutputDelta(
            text=to_text([token]), logprobs=[TokenLogprob(text="", bytes=[], logprob=score.logprob, top=top)]
        )

    def finish(self, *, truncated):
        return None


class ConstantNetwork:
    """A network with useless logits.

    Args:
        network: fills the caches.
        value: every logit but that of token 5, which is 0, or NaN if the others are.
    """

    def __init__(self, network, value):
        self._network = network
        self._logits = mx.where(mx.arange(VOCABULARY) == 5, value if math.isnan(value) else 0.0, value)

    def __call__(self, tokens, cache=None):
        return 0 * self._network(tokens, cache=cache) + self._logits

    def __getattr__(self, name):
        return getattr(self._network, name)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("params", [GREEDY, RANDOM, SamplingParams(temperature=1.5, seed=11, top_p=0.5, top_k=3)])
def test_log_probabilities_are_finite_even_if_logits_are_not(network, value, params):
    engine = Engine(ConstantNetwork(network(), value), [], Limits())
    request = build_request(
        1, PROMPT, 3, params, logprobs=2, echo=echo, needs_prompt_logprobs=True, output=LogprobOutput
    )

    frames = run(engine, request)

    assert "length" == finish_reason_of(frames, 1)
    deltas = [event for event in events_of(frames, 1) if isinstance(event, Delta)]
    logprobs = [token.logprob for delta in deltas for token in delta.logprobs]
    assert 5 == len(logprobs)
    assert all(map(math.isfinite, logprobs))
    assert b"null" not in framing.encode(frames)


# Prompts and the model


def test_a_poisoned_prompt_fails_only_its_request(network, chunk_tokens):
    engine = Engine(RecordingNetwork(network(), poison=VOCABULARY - 1), [], WITH_CACHE)
    chunk_tokens(engine, 64)
    poisoned = [*tokens(150), VOCABULARY - 1, 5]
    prompts = {1: tokens(100, 3000), 3: tokens(300)}

    frames = run(
        engine, *[build_request(id_, prompt, 20) for id_, prompt in prompts.items()], build_request(2, poisoned)
    )

    (failed,) = failures_in(frames).values()
    assert (2, "the model failed to process this prompt: ValueError: poisoned") == (failed.id, failed.message)
    for id_, prompt in prompts.items():
        assert greedy(network(), prompt, 20) == tokens_of(frames, id_)


def test_a_poisoned_prompt_that_shares_a_pass_fails_only_its_request(network, chunk_tokens):
    engine = Engine(RecordingNetwork(network(), poison=VOCABULARY - 1), [], WITH_CACHE)
    chunk_tokens(engine, 512)
    prompts = {1: tokens(20), 2: [*tokens(10, 5000), VOCABULARY - 1, 3], 3: tokens(30, 9000)}

    frames = run(engine, *[build_request(id_, prompt) for id_, prompt in prompts.items()])

    assert {2} == failures_in(frames).keys()
    for id_ in (1, 3):
        assert greedy(network(), prompts[id_], 8) == tokens_of(frames, id_)


@pytest.mark.parametrize("echo", [None, lambda _: OutputDelta(text="prompt ")])
def test_a_choice_that_is_ready_fails_with_another_of_its_request_in_the_same_step(network, echo):
    recording = RecordingNetwork(network())
    engine = Engine(recording, [], Limits())
    engine.add(build_request(1, PROMPT, 30, RANDOM, n=2, echo=echo))
    run_until(engine, 1, 12)
    first, second = engine.planner.decoding.values()
    # A token that only the second choice has, and no probe.
    only_second = set(second.choice.output_tokens) - set(first.choice.output_tokens) - set(range(PROBE_TOKENS + 1))
    recording.poison = only_second.pop()
    for sequence in (second, first):
        engine._remove([sequence])
        sequence.choice.sampling.rewind(sequence.choice.output_tokens)
        engine.planner.requeue(sequence)

    frames = run(engine, build_request(2, [5], 10))

    assert {1} == failures_in(frames).keys()
    assert [2] == completed_ids(frames)


def test_a_model_that_fails_on_every_prompt_loses_no_request_id(engine, recording, chunk_tokens):
    chunk_tokens(engine, 64)
    for id_, prompt in ((1, PROMPT), (2, LONG), (3, tokens(300, 9000))):
        engine.add(build_request(id_, prompt, 30))
    run_until(engine, 1)
    recording.failures = 10**6

    with pytest.raises(ValueError, match="broken"):
        engine.prefill()

    assert [1, 2, 3] == sorted(engine.drop_all())


def test_completed_prompts_are_not_lost_if_the_model_fails_in_the_same_step(network, monkeypatch, chunk_tokens):
    engine = Engine(RecordingNetwork(network(), poison=VOCABULARY - 1), [], WITH_CACHE)
    chunk_tokens(engine, 500)
    engine.add(build_request(1, PROMPT, 30))
    run_until(engine, 1)
    engine.add(build_request(2, [5, 6], 30))
    engine.add(build_request(3, [*tokens(100), VOCABULARY - 1], 30))
    monkeypatch.setattr(Probe, "from_network", lambda network, device: network.missing_attribute)

    with pytest.raises(AttributeError):
        engine.prefill()

    assert [1, 2, 3] == sorted(engine.drop_all())


def test_the_engine_serves_requests_after_a_failed_step(engine, recording, network):
    engine.add(build_request(1, LONG, 30))
    run_until(engine, 1, 3)
    recording.failures = 1

    with pytest.raises(ValueError, match="broken"):
        engine.decode()
    assert [1] == engine.drop_all()

    frames = run(engine, build_request(2, LONG, 5))
    assert greedy(network(), LONG, 5) == tokens_of(frames, 2)
    assert 0 == usage_of(frames, 2).cached_tokens
