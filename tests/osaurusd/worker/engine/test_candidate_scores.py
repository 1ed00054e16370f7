"""Requests that score candidates after several continuations of one prompt."""

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.inference.events import CandidateScores, Completed
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.prefill_queue import MAX_BATCHED_PROMPTS
from osaurusd.worker.engine.request import Choice, EngineRequest
from osaurusd.worker.engine.sampler import SamplingState
from tests.osaurusd.worker.engine.harness import (
    GREEDY,
    WITH_CACHE,
    FakeOutput,
    build_request,
    events_of,
    run,
    run_until,
    step,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import BATCHABLE, RecordingNetwork, sample

pytestmark = pytest.mark.usefixtures("share_probes")

CANDIDATES = [3, 5, 8]
PROMPT = [(7 * i) % 96 + 1 for i in range(150)]


def build_scoring(id_, prompt, suffixes, candidates=CANDIDATES):
    choices = [
        Choice(index, SamplingState(GREEDY), FakeOutput(), prompt_suffix=list(suffix), candidates=list(candidates))
        for index, suffix in enumerate(suffixes)
    ]
    return EngineRequest(
        id=id_,
        prompt_tokens=list(prompt),
        choices=choices,
        max_tokens=0,
        shared_prefix_length=len(prompt),
        scored=lambda logprobs: CandidateScores(logprobs=logprobs),
    )


def suffixes(count, length=20):
    generator = np.random.default_rng(count)
    return generator.integers(1, 96, (count, length)).tolist()


def expected_scores(network, prompt, suffix, candidates=CANDIDATES):
    logits = network(mx.array([[*prompt, *suffix]]))[0, -1].astype(mx.float32)
    return (logits - mx.logsumexp(logits))[mx.array(candidates)].tolist()


def scores_in(frames, id_):
    scores, completed = events_of(frames, id_)
    assert isinstance(scores, CandidateScores)
    assert isinstance(completed, Completed)
    return scores.logprobs


@pytest.fixture
def make_engine(network):
    return lambda kind="llama", limits=WITH_CACHE: Engine(network(kind), [], limits)


@pytest.mark.parametrize("kind", sample(BATCHABLE))
@pytest.mark.parametrize(
    "limits",
    [WITH_CACHE, pytest.param(Limits(), marks=pytest.mark.long)],
    ids=["with cache", "without cache"],
)
def test_scores_are_the_log_probabilities_after_the_whole_prompt(make_engine, network, kind, limits):
    engine, endings = make_engine(kind, limits), [[4, 2], [9], *suffixes(4, 30)]
    scores = scores_in(run(engine, build_scoring(1, PROMPT, endings)), 1)
    for suffix, logprobs in zip(endings, scores, strict=True):
        assert logprobs == pytest.approx(expected_scores(network(kind), PROMPT, suffix), abs=1e-3)


def test_the_prompt_is_processed_once_and_the_continuations_share_passes(network):
    recording, endings = RecordingNetwork(network()), suffixes(MAX_BATCHED_PROMPTS + 4)
    engine = Engine(recording, [], WITH_CACHE)
    recording.shapes.clear()
    run(engine, build_scoring(1, PROMPT, endings))
    padding = 16
    processed = sum(rows * width for rows, width in recording.shapes)
    assert processed <= len(PROMPT) + sum(map(len, endings)) + padding
    assert len(recording.shapes) < len(endings)


def test_usage_counts_the_prompt_once(make_engine):
    engine = make_engine()
    first = usage_of(run(engine, build_scoring(1, PROMPT, suffixes(3))), 1)
    assert (first.prompt_tokens, first.completion_tokens, first.cached_tokens) == (len(PROMPT) + 60, 0, 0)
    again = usage_of(run(engine, build_scoring(2, PROMPT, suffixes(2))), 2)
    assert again.prompt_tokens == len(PROMPT) + 40
    assert again.cached_tokens >= len(PROMPT)


def test_continuations_are_not_stored_in_the_prefix_cache(make_engine):
    engine = make_engine()
    run(engine, build_scoring(1, PROMPT, suffixes(1)))
    nbytes = engine.prefix_cache.nbytes
    run(engine, build_scoring(2, PROMPT, suffixes(12)))
    assert engine.prefix_cache.nbytes == nbytes


def test_generation_in_the_same_pass_is_unaffected(make_engine):
    alone = tokens_of(run(make_engine(), build_request(1, [5, 6, 7])), 1)
    engine = make_engine()
    engine.add(build_scoring(2, [1, 2, 3], suffixes(6)))
    assert tokens_of(run(engine, build_request(1, [5, 6, 7])), 1) == alone


def test_running_sequences_continue_between_passes(make_engine, set_chunks):
    engine = make_engine()
    set_chunks(engine, shared=64)
    engine.add(build_request(1, [5, 6, 7], max_tokens=400))
    run_until(engine, 1, 1)
    engine.add(build_scoring(2, PROMPT, suffixes(40)))
    tokens_by_step = []
    while not events_of(frames := step(engine), 2):
        tokens_by_step.append(len(events_of(frames, 1)))
    assert set(tokens_by_step) == {1}


def test_a_later_request_is_not_behind_all_continuations(make_engine):
    engine = make_engine()
    engine.add(build_scoring(1, PROMPT, suffixes(200)))
    step(engine)
    engine.add(build_request(2, [5, 6, 7], max_tokens=3))
    frames = run_until(engine, 2, 1)
    assert not events_of(frames, 1)


def test_a_cancelled_request_leaves_nothing_behind(make_engine):
    engine = make_engine()
    engine.add(build_scoring(1, PROMPT, suffixes(100)))
    for _ in range(3):
        step(engine)
    engine.cancel(1)
    assert not engine.busy
    passes = engine.progress
    assert not step(engine)
    assert engine.progress == passes
