"""What prompts reuse from the prefix cache. Every output is compared with one computed without any cache."""

import pytest

from osaurusd.inference.events import Delta
from osaurusd.worker.engine.chunk_sizer import MAX_TOKENS
from osaurusd.worker.engine.engine import Limits
from osaurusd.worker.engine.prefill_queue import LAST_PASS_TOKENS, MIN_LAST_PASS_TOKENS
from tests.osaurusd.worker.engine.harness import (
    OUTPUT_TOKENS,
    CheckedEngine,
    completed_ids,
    events_of,
    run,
    run_until,
    step,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import KINDS, SLICEABLE, WITH_STATES, is_greedy, sample, select, tokens

pytestmark = pytest.mark.usefixtures("share_probes")

LONG = tokens(600)


def last_checkpoint(prompt):
    return len(prompt) - MIN_LAST_PASS_TOKENS


@pytest.mark.parametrize("kind", select(KINDS, "llama", "gemma3"))
def test_a_repeated_prompt_is_reused(checked_engine, kind):
    engine = checked_engine(kind)
    first, cached = engine.generate(LONG)
    assert cached == 0

    (second, cached), computed = engine.count_tokens(lambda: engine.generate(LONG))

    assert first == second
    assert cached == (len(LONG) - 1 if kind in SLICEABLE else last_checkpoint(LONG))
    assert computed == len(LONG) - cached + OUTPUT_TOKENS


@pytest.mark.parametrize("kind", sample(KINDS))
@pytest.mark.parametrize("common", select([100, 256, 400, 512, 590], 400, 590))
def test_a_common_prefix_is_reused(checked_engine, kind, common):
    engine = checked_engine(kind)
    engine.generate(LONG, shared_prefix_length=common)
    prompt = [*LONG[:common], *tokens(150, 5000)]

    (_, cached), computed = engine.count_tokens(lambda: engine.generate(prompt))

    expected = common if kind in SLICEABLE or common < last_checkpoint(LONG) else last_checkpoint(LONG)
    assert expected == cached
    assert computed == len(prompt) - cached + OUTPUT_TOKENS


@pytest.mark.parametrize("kind", select(WITH_STATES, "falcon_h1"))
def test_a_common_prefix_without_a_checkpoint_is_reused_by_the_third_prompt(checked_engine, kind):
    engine = checked_engine(kind)
    prompts = [[*LONG[:400], *tokens(150, start)] for start in (1000, 3000, 5000)]

    assert [0, 0, 400] == [engine.generate(prompt)[1] for prompt in prompts]


@pytest.mark.parametrize("kind", select(KINDS, "llama"))
def test_a_conversation_reuses_prompt_and_output_of_the_last_turn(checked_engine, kind):
    engine = checked_engine(kind)
    prompt = LONG[:300]
    cached_tokens = []
    for start in (1000, 2000, 3000):
        output, cached = engine.generate(prompt)
        cached_tokens.append(cached)
        prompt = [*prompt, *output, *tokens(90, start)]

    turn = OUTPUT_TOKENS + 90
    assert [0, 300 + OUTPUT_TOKENS, 300 + turn + OUTPUT_TOKENS] == cached_tokens


@pytest.mark.parametrize("kind", select(KINDS, "llama", "llama4"))
@pytest.mark.parametrize("chunk", [pytest.param(64, marks=pytest.mark.long), 80])
def test_prefixes_are_reused_while_other_sequences_decode(checked_engine, kind, chunk, set_chunks):
    engine = checked_engine(kind)
    set_chunks(engine.engine, shared=chunk)
    background = engine.start_background()
    if kind == "llama4":  # it serves one sequence at a time, and would finish the background request first
        engine.engine.cancel(background.id)
    frames, cached = [], []

    for prompt in (LONG, LONG, [*LONG[:400], *tokens(150, 5000)]):
        request = engine.build(prompt, shared_prefix_length=400)
        engine.engine.add(request)
        while request.id not in completed_ids(frames):
            frames += step(engine.engine)
        cached.append(engine.check(frames, request.id)[1])

    assert kind == "llama4" or background.id in {frame.id for frame in step(engine.engine)}
    assert [0, len(LONG) - 1 if kind in SLICEABLE else last_checkpoint(LONG), 400] == cached


@pytest.mark.parametrize("kind", select(KINDS, "llama"))
def test_evicted_prefixes_are_computed_again(checked_engine, kind):
    engine = checked_engine(kind)
    engine.generate(LONG)
    limit = engine.engine.stats().prefix_cache_bytes * 5 // 4
    small = CheckedEngine(engine.network.network, Limits(prefix_cache_bytes=limit))
    other = tokens(600, 5000)

    cached = [small.generate(prompt)[1] for prompt in (LONG, other, LONG, LONG[:300], other)]

    assert [0, 0] == cached[:2]
    assert max(cached) < len(LONG) - 1
    assert small.engine.stats().prefix_cache_bytes <= limit


@pytest.mark.parametrize("kind", select(["llama", "gemma3"], "llama"))
def test_nothing_is_reused_if_the_prefix_cache_is_disabled(checked_engine, kind):
    engine = checked_engine(kind, Limits())

    assert [0, 0] == [engine.generate(LONG)[1] for _ in range(2)]


@pytest.mark.parametrize("kind", select(KINDS, "llama", "gemma3"))
def test_choices_compute_their_prompt_once(checked_engine, kind):
    engine = checked_engine(kind)
    request = engine.build(LONG, n=3)

    frames, computed = engine.count_tokens(lambda: run(engine.engine, request))

    outputs = [tokens_of(frames, request.id, index) for index in range(3)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert is_greedy(engine.network, LONG, outputs[0])
    assert 0 == usage_of(frames, request.id).cached_tokens
    repeated = 2 * MIN_LAST_PASS_TOKENS if kind == "llama4" else 0
    assert len(LONG) + 3 * OUTPUT_TOKENS + repeated == computed


# Concurrent prompts


@pytest.mark.parametrize("kind", sample(SLICEABLE))
@pytest.mark.parametrize("chunk", [MAX_TOKENS, 128])
def test_concurrent_prompts_compute_their_common_prefix_once(checked_engine, kind, chunk, set_chunks):
    engine = checked_engine(kind)
    set_chunks(engine.engine, idle=chunk, shared=chunk)
    prompts = [[*LONG[:600], *tokens(50, start)] for start in (1000, 2000, 3000, 4000)]
    requests = [engine.build(prompt) for prompt in prompts]

    frames, computed = engine.count_tokens(lambda: run(engine.engine, *requests))

    cached = [engine.check(frames, request.id)[1] for request in requests]
    assert cached[0] == 0
    assert min(cached[1:]) >= 600 - LAST_PASS_TOKENS
    assert computed <= 600 + len(prompts) * (50 + LAST_PASS_TOKENS + OUTPUT_TOKENS)


def test_a_prompt_waits_only_for_the_common_prefix_of_another(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=64, shared=64)
    engine.engine.add(engine.build([*LONG[:200], *tokens(500, 1000)]))
    short = engine.build([*LONG[:200], *tokens(20, 2000)])
    engine.engine.add(short)

    frames = run_until(engine.engine, short.id)

    assert [short.id] == [id_ for id_ in (1, 2) if any(isinstance(event, Delta) for event in events_of(frames, id_))]


def test_a_prompt_that_waits_for_a_cancelled_one_continues(checked_engine, set_chunks):
    engine = checked_engine()
    set_chunks(engine.engine, idle=64)
    first, second = engine.build([*LONG, 1]), engine.build([*LONG, 2])
    engine.engine.add(first)
    engine.engine.add(second)
    step(engine.engine)
    step(engine.engine)

    engine.engine.cancel(first.id)

    _, cached = engine.check(run(engine.engine), second.id)
    assert cached == 128
