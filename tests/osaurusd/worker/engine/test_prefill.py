"""Chunks, their order, shared passes, and prompt scores. Outputs are compared with those computed without any cache."""

import pytest

from osaurusd.inference.events import Delta, Progress
from osaurusd.worker.engine.engine import Limits
from osaurusd.worker.engine.prefill_queue import MIN_LAST_PASS_TOKENS
from tests.osaurusd.worker.engine.harness import (
    OUTPUT_TOKENS,
    build_request,
    events_of,
    run,
    run_until,
    step,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import (
    KINDS,
    PROMPT,
    SLICEABLE,
    expected_logprobs,
    is_greedy,
    sample,
    select,
    tokens,
)

pytestmark = pytest.mark.usefixtures("share_probes")

LONG = tokens(600)
WITHOUT_CACHE = Limits()


# Chunks


@pytest.mark.parametrize("kind", sample(KINDS))
def test_a_prompt_in_chunks_yields_the_same_output_as_in_one_pass(checked_engine, kind, set_chunks):
    engine = checked_engine(kind, WITHOUT_CACHE)
    set_chunks(engine.engine, idle=100)
    engine.network.shapes.clear()

    engine.generate(LONG)

    chunks = [100] * 5 + [100 - MIN_LAST_PASS_TOKENS, MIN_LAST_PASS_TOKENS]
    assert [*chunks, *[1] * OUTPUT_TOKENS] == engine.network.single_widths


def test_progress_is_reported_after_each_pass_but_the_last(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=200)
    prompt = LONG[:450]
    frames = run(engine.engine, build_request(1, prompt, report_progress=True))

    progress = [event for event in events_of(frames, 1) if isinstance(event, Progress)]
    assert [200, 400] == [event.prefilled for event in progress[:2]]
    assert {(450, 0)} == {(event.prompt_tokens, event.cached_tokens) for event in progress}
    assert all(event.prefilled < 450 for event in progress)
    assert not any(isinstance(event, Progress) for event in events_of(run(engine.engine, build_request(2, LONG)), 2))


def test_chunks_follow_the_budget_while_other_sequences_decode(checked_engine, set_chunks):
    engine = checked_engine(limits=WITHOUT_CACHE)
    set_chunks(engine.engine, shared=96)
    engine.start_background()
    request = engine.build(LONG, 1)

    engine.engine.add(request)
    run_until(engine.engine, request.id)

    assert [96] * 5 == engine.network.single_widths[:5]
    assert len(LONG) == sum(engine.network.single_widths)


@pytest.mark.parametrize("budget", [16, 32, 64, 96])
@pytest.mark.parametrize("count", [17, 40, 65, 128, 600])
def test_a_prompt_takes_at_most_one_pass_more_than_its_budget_requires(checked_engine, set_chunks, budget, count):
    engine = checked_engine(limits=WITHOUT_CACHE)
    set_chunks(engine.engine, shared=budget)
    engine.start_background()
    request = engine.build(LONG[:count], 1)

    engine.engine.add(request)
    run_until(engine.engine, request.id)

    assert sum(engine.network.single_widths) == count
    assert len(engine.network.single_widths) <= -(-count // budget) + 1


def test_decoding_sequences_get_a_token_between_two_chunks(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, shared=64)
    background = engine.start_background()
    request = engine.build(LONG)
    engine.engine.add(request)
    frames = []

    while not any(isinstance(event, Delta) for event in events_of(frames, request.id)):
        engine.network.shapes.clear()
        frames = step(engine.engine)
        assert sum(engine.network.single_widths) <= 64 + MIN_LAST_PASS_TOKENS
        assert {0, 1} == {event.index for event in events_of(frames, background.id)}


# Order


def test_a_short_prompt_is_prefilled_before_the_rest_of_a_long_one(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=64)
    engine.engine.add(engine.build(LONG))
    step(engine.engine)
    short = engine.build(tokens(60, 5000))
    engine.engine.add(short)

    engine.network.shapes.clear()
    run_until(engine.engine, short.id)

    assert 60 == engine.network.single_widths[0]


def test_a_long_prompt_is_not_starved_by_short_ones(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=64, shared=64)
    long = engine.build(tokens(300))
    engine.engine.add(long)
    frames = []
    for at in range(40):
        engine.engine.add(engine.build(tokens(60, 1000 + 100 * at), 1))
        frames += step(engine.engine)

    assert any(isinstance(event, Delta) for event in events_of(frames, long.id))


def test_a_first_token_does_not_wait_for_long_prompts(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=64, shared=64)
    for length, start in ((50, 1000), (400, 2000), (400, 3000)):
        engine.engine.add(engine.build(tokens(length, start)))

    frames = [*step(engine.engine), *engine.engine.decode()]

    assert [True, False, False] == [
        any(isinstance(event, Delta) for event in events_of(frames, id_)) for id_ in (1, 2, 3)
    ]


# Shared passes


SHORT = [tokens(count, 1000 * count) for count in (1, 60, 2, 33, 20)]


@pytest.mark.parametrize("kind", sample(SLICEABLE))
@pytest.mark.parametrize("decoding", [0, pytest.param(1, marks=pytest.mark.long), 2])
def test_short_prompts_share_a_pass(checked_engine, kind, decoding, set_chunks):
    engine = checked_engine(kind)
    set_chunks(engine.engine, shared=512, idle=512)
    frames = []
    if decoding:
        engine.engine.add(engine.build(PROMPT, 60, n=decoding))
        frames += run_until(engine.engine, 1, decoding)
    requests = [engine.build(prompt, 20) for prompt in SHORT]

    engine.network.shapes.clear()
    frames += run(engine.engine, *requests)

    assert (len(SHORT), 59) in engine.network.shapes
    for request in requests:
        engine.check(frames, request.id)
        assert len(request.prompt_tokens) - 1 == engine.generate(request.prompt_tokens, 20)[1]


def test_prompts_with_cached_prefixes_share_a_pass(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=512)
    engine.generate(LONG)
    requests = [engine.build([*LONG[:count], *tokens(30, 5000 + count)]) for count in (300, 512, 7)]

    engine.network.shapes.clear()
    frames = run(engine.engine, *requests)

    assert 3 == engine.network.shapes[0][0]
    assert [300, 512, 7] == [engine.check(frames, request.id)[1] for request in requests]


def test_shared_passes_stay_within_the_budget(checked_engine, set_chunks):
    engine = checked_engine()
    engine.start_background()
    set_chunks(engine.engine, shared=128)
    requests = [engine.build(tokens(40, 1000 * at)) for at in range(6)]
    for request in requests:
        engine.engine.add(request)

    engine.network.shapes.clear()
    frames = step(engine.engine)

    assert sum(rows * width for rows, width in engine.network.shapes if width > 1) <= 128
    frames += run(engine.engine)
    for request in requests:
        engine.check(frames, request.id)


# Scores


@pytest.mark.parametrize("kind", select(["llama", "gemma3", "llama4"], "llama"))
@pytest.mark.parametrize("count", [1, 2, 64, 65, 200])
def test_every_prompt_token_but_the_first_is_scored(checked_engine, kind, count):
    engine = checked_engine(kind)
    prompt = LONG[:count]
    engine.generate(prompt)  # cached tokens have no scores, and must not be reused
    scores = []
    request = build_request(9, prompt, 3, logprobs=2, needs_prompt_logprobs=True, echo=scores.extend)

    frames = run(engine.engine, request)

    assert is_greedy(engine.network, prompt, tokens_of(frames, 9))
    assert 0 == usage_of(frames, 9).cached_tokens
    expected = expected_logprobs(engine.network, prompt[:1], prompt[1:]) if count > 1 else []
    assert expected == pytest.approx([score.logprob for score in scores], abs=1e-3)
    assert all(len(score.top) == 2 for score in scores)
