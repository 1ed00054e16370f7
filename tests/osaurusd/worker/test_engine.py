import pytest

from osaurusd import ipc
from osaurusd.worker import engine as engine_module
from osaurusd.worker.decode import MAX_SEQUENCES
from osaurusd.worker.engine import PREFILL_CHUNK_ALONE, PREFILL_CHUNK_SHARED, Engine
from tests.osaurusd.worker.networks import BATCHABLE, VOCABULARY, Watched, greedy, greedy_all, sequence, written

ALL_KINDS = [*BATCHABLE, "chunked attention"]
PROMPT = [7, 8, 9]
DOWNWARD = list(range(60, 10, -1))
LONG = [(13 * at + at // 7) % VOCABULARY for at in range(1200)]


def turn(engine):
    """What the MLX thread does in one round."""
    frames = engine.decode()
    engine.prefill()
    return frames


@pytest.fixture
def watched(network):
    """A network whose calls are noted."""
    return Watched(network())


@pytest.fixture
def engine(watched):
    return Engine(watched, [])


def step(engine):
    """What the thread does between two looks at its orders."""
    frames = engine.decode()
    engine.prefill()
    return frames


def run(engine, *sequences):
    """Add sequences and step until nothing is left; all frames but Stats."""
    for one in sequences:
        engine.add(one)
    frames = []
    for _ in range(2000):
        if not engine.busy:
            return [frame for frame in frames if not isinstance(frame, ipc.Stats)]
        frames += turn(engine)
    raise AssertionError("the engine does not come to an end")


def text_of(frames, id_):
    return "".join(frame.text for frame in frames if isinstance(frame, ipc.Delta) and frame.id == id_)


def done_of(frames, id_):
    """The last frame of a sequence, which must be its only Done."""
    (done,) = [frame for frame in frames if isinstance(frame, ipc.Done) and frame.id == id_]
    assert done is [frame for frame in frames if frame.id == id_][-1]
    return done


def fresh(tokens):
    """Where a token stands that has not been there before, and is not the first."""
    return next(at for at in range(2, len(tokens)) if tokens[at] not in tokens[:at])


def step_until(engine, id_, count=1):
    """Step until a sequence has got so many frames."""
    frames = []
    while sum(frame.id == id_ for frame in frames) < count:
        frames += [frame for frame in turn(engine) if not isinstance(frame, ipc.Stats)]
    return frames


# What a sequence gets


def test_an_answer_is_deltas_and_then_done(engine, network):
    tokens = greedy(network(), PROMPT, 3)

    frames = run(engine, sequence(1, PROMPT, 3))

    assert [
        *[ipc.Delta(id=1, text=written([token])) for token in tokens],
        ipc.Done(id=1, finish_reason="length", prompt_tokens=3, completion_tokens=3),
    ] == frames


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_tokens_is_exact(engine, network, count):
    frames = run(engine, sequence(1, PROMPT, count))

    assert written(greedy(network(), PROMPT, count)) == text_of(frames, 1)
    assert ("length", count) == (done_of(frames, 1).finish_reason, done_of(frames, 1).completion_tokens)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_end_token_stops_and_is_neither_text_nor_counted(network, kind):
    tokens = greedy(network(kind), DOWNWARD, 12)
    at = fresh(tokens)

    frames = run(Engine(network(kind), [tokens[at]]), sequence(1, DOWNWARD, 50))

    assert written(tokens[:at]) == text_of(frames, 1)
    assert ("stop", at) == (done_of(frames, 1).finish_reason, done_of(frames, 1).completion_tokens)


def test_an_answer_that_is_only_an_end_token_is_empty(network):
    (end,) = greedy(network(), PROMPT, 1)

    frames = run(Engine(network(), [end]), sequence(1, PROMPT))

    assert [
        ipc.Delta(id=1, text=""),
        ipc.Done(id=1, finish_reason="stop", prompt_tokens=3, completion_tokens=0),
    ] == frames


def test_an_end_token_at_the_very_limit_is_a_stop(network):
    tokens = greedy(network(), DOWNWARD, 12)
    at = fresh(tokens)

    frames = run(Engine(network(), [tokens[at]]), sequence(1, DOWNWARD, at + 1))

    assert ("stop", at) == (done_of(frames, 1).finish_reason, done_of(frames, 1).completion_tokens)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_stop_string_over_a_token_border_stops_and_is_not_emitted(network, kind):
    tokens = greedy(network(kind), DOWNWARD, 8)
    text = written(tokens)
    cut = len(written(tokens[:3]))
    stop = text[cut - 2 : cut + 1]
    expected = text[: text.index(stop)]

    frames = run(Engine(network(kind), []), sequence(1, DOWNWARD, 50, stop=["never", stop]))

    assert expected == text_of(frames, 1)
    done = done_of(frames, 1)
    assert done.finish_reason == "stop"
    assert next(n for n in range(9) if stop in written(tokens[:n])) == done.completion_tokens


def test_a_stop_string_in_the_last_allowed_token_is_a_stop(engine, network):
    tokens = greedy(network(), DOWNWARD, 12)
    at = fresh(tokens)

    frames = run(engine, sequence(1, DOWNWARD, at + 1, stop=[f" {tokens[at]} "]))

    assert ("stop", at + 1) == (done_of(frames, 1).finish_reason, done_of(frames, 1).completion_tokens)


def test_text_held_for_a_stop_string_is_emitted_when_the_limit_comes_first(engine, network):
    text = written(greedy(network(), PROMPT, 3))

    frames = run(engine, sequence(1, PROMPT, 3, stop=[text + "and more"]))

    assert text == text_of(frames, 1)
    assert done_of(frames, 1).finish_reason == "length"


def test_text_held_for_a_stop_string_is_emitted_when_the_end_comes_first(network):
    tokens = greedy(network(), DOWNWARD, 12)
    at = fresh(tokens)
    text = written(tokens[:at])

    frames = run(Engine(network(), [tokens[at]]), sequence(1, DOWNWARD, 50, stop=[text + "and more"]))

    assert text == text_of(frames, 1)
    assert done_of(frames, 1).finish_reason == "stop"


def test_the_first_delta_comes_with_the_first_token_even_if_it_is_empty(engine, network):
    text = written(greedy(network(), PROMPT, 5))

    frames = run(engine, sequence(1, PROMPT, 3, stop=[text]))

    assert ipc.Delta(id=1, text="") == frames[0]
    assert not [frame for frame in frames[1:] if frame == ipc.Delta(id=1, text="")]


def test_an_answer_repeats_with_its_seed_whoever_else_is_there(network):
    seeded = ipc.Sampling(temperature=1.5, top_p=1, seed=11)
    wild = ipc.Sampling(temperature=2, top_p=1)
    alone = text_of(run(Engine(network(), []), sequence(1, PROMPT, 10, seeded)), 1)

    frames = run(
        Engine(network(), []),
        sequence(5, LONG[:50], 7, wild),
        sequence(1, PROMPT, 10, seeded),
        sequence(2, PROMPT, 10),
    )

    assert alone == text_of(frames, 1)
    assert written(greedy(network(), PROMPT, 10)) == text_of(frames, 2)


# Several at once


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_sequences_at_once_get_what_each_gets_alone(network, kind):
    prompts = [[5], PROMPT, LONG[:20], [11] * 5, PROMPT, LONG[:50], [5]]

    frames = run(Engine(network(kind), []), *[sequence(id_, prompt, 10) for id_, prompt in enumerate(prompts)])

    expected = [written(greedy(network(kind), prompt, 10)) for prompt in prompts]
    assert expected == [text_of(frames, id_) for id_ in range(len(prompts))]
    assert [len(prompt) for prompt in prompts] == [done_of(frames, id_).prompt_tokens for id_ in range(len(prompts))]


@pytest.mark.parametrize("kind", BATCHABLE)
def test_a_sequence_may_join_while_others_decode(network, kind):
    engine = Engine(network(kind), [])
    engine.add(sequence(1, PROMPT, 20))
    frames = step_until(engine, 1, 5)

    frames += run(engine, sequence(2, LONG[:300], 10))

    assert written(greedy(network(kind), PROMPT, 20)) == text_of(frames, 1)
    assert written(greedy(network(kind), LONG[:300], 10)) == text_of(frames, 2)


def test_more_sequences_than_fit_wait_for_a_place(engine, network):
    count = MAX_SEQUENCES + 3
    prompts = {id_: [id_ % VOCABULARY, 1, 2] for id_ in range(count)}
    for id_, prompt in prompts.items():
        engine.add(sequence(id_, prompt, 40))

    frames, most = [], 0
    while engine.busy:
        step = [frame for frame in turn(engine) if not isinstance(frame, ipc.Stats)]
        most = max(most, len({frame.id for frame in step}))
        frames += step

    assert most == MAX_SEQUENCES
    expected = [written(tokens) for tokens in greedy_all(network(), list(prompts.values()), 40)]
    assert expected == [text_of(frames, id_) for id_ in prompts]
    assert {40} == {done_of(frames, id_).completion_tokens for id_ in prompts}


def test_each_decoding_sequence_gets_one_token_a_step(engine):
    for id_ in range(3):
        engine.add(sequence(id_, PROMPT, 30))
    for id_ in range(3):
        step_until(engine, id_)

    assert [0, 1, 2] == sorted(frame.id for frame in turn(engine))


# Prompts


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_long_prompt_in_chunks_gives_the_same_as_in_one_pass(network, kind, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_ALONE", 64)
    watched = Watched(network(kind))

    frames = run(Engine(watched, []), sequence(1, LONG[:150], 3))

    assert watched.shapes[:3] == [(1, 64), (1, 64), (1, 21)]
    assert written(greedy(network(kind), LONG[:150], 3)) == text_of(frames, 1)


def test_a_prompt_alone_is_processed_in_large_chunks(engine, watched):
    run(engine, sequence(1, LONG, 1))

    rest = len(LONG) - 1 - 2 * PREFILL_CHUNK_ALONE
    assert [(1, PREFILL_CHUNK_ALONE), (1, PREFILL_CHUNK_ALONE), (1, rest)] == watched.shapes[:3]


def test_a_prompt_is_processed_in_small_chunks_between_the_tokens_of_others(engine, watched, network):
    engine.add(sequence(1, PROMPT, 30))
    frames = step_until(engine, 1)
    watched.shapes.clear()

    engine.add(sequence(2, LONG[:600], 3))
    steps = []
    while 2 not in {frame.id for frame in frames}:
        before = len(watched.shapes)
        frames += [frame for frame in turn(engine) if not isinstance(frame, ipc.Stats)]
        steps.append(watched.shapes[before:])
    frames += run(engine)

    prompt_chunks = [width for shapes in steps for _, width in shapes if width > 1]
    assert sum(prompt_chunks) == 599
    assert max(prompt_chunks) == PREFILL_CHUNK_SHARED
    assert max(sum(width for _, width in shapes) for shapes in steps) <= PREFILL_CHUNK_SHARED + 2
    assert written(greedy(network(), PROMPT, 30)) == text_of(frames, 1)
    assert written(greedy(network(), LONG[:600], 3)) == text_of(frames, 2)


def test_prompts_take_turns(engine):
    engine.add(sequence(1, LONG, 20))
    engine.add(sequence(2, LONG[:600], 20))

    frames = step_until(engine, 2)

    assert {2} == {frame.id for frame in frames}, "the shorter one must not wait for all of the longer one"


def test_an_answer_begins_as_soon_as_its_prompt_is_processed(engine):
    engine.add(sequence(1, PROMPT, 20))
    engine.add(sequence(2, LONG, 20))

    frames = step_until(engine, 1, 3)

    assert {1} == {frame.id for frame in frames}


def test_a_prompt_of_one_token_needs_no_processing(engine, watched, network):
    frames = run(engine, sequence(1, [5], 3))

    assert written(greedy(network(), [5], 3)) == text_of(frames, 1)
    assert {(1, 1)} == set(watched.shapes)


# Cancelling


def test_a_cancelled_sequence_that_decodes_is_gone_by_the_next_step(engine, network):
    engine.add(sequence(1, PROMPT, 100))
    engine.add(sequence(2, [5], 12))
    frames = step_until(engine, 1, 2)

    engine.cancel(1)

    after = run(engine)
    assert {2} == {frame.id for frame in after}
    assert written(greedy(network(), [5], 12)) == text_of(frames + after, 2)


def test_a_cancelled_sequence_whose_prompt_is_processed_is_gone_by_the_next_step(engine, watched):
    engine.add(sequence(1, LONG, 100))
    turn(engine)
    assert watched.shapes == [(1, PREFILL_CHUNK_ALONE)]

    engine.cancel(1)

    assert not engine.busy
    assert turn(engine) == []
    assert watched.shapes == [(1, PREFILL_CHUNK_ALONE)]


def test_a_cancelled_sequence_that_waits_is_gone_by_the_next_step(engine, watched):
    engine.add(sequence(1, PROMPT, 100))

    engine.cancel(1)

    assert not engine.busy
    assert turn(engine) == []
    assert watched.shapes == []


def test_a_cancelled_sequence_between_prompt_and_first_token_is_gone_by_the_next_step(engine):
    engine.add(sequence(1, PROMPT, 100))
    assert turn(engine) == []

    engine.cancel(1)

    assert not engine.busy
    assert turn(engine) == []


def test_a_place_that_a_cancelled_sequence_left_is_taken(engine):
    for id_ in range(MAX_SEQUENCES + 1):
        engine.add(sequence(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES):
        step_until(engine, id_)

    engine.cancel(3)

    frames = step_until(engine, MAX_SEQUENCES, 2)
    assert 3 not in {frame.id for frame in frames}


def test_cancelling_what_is_not_there_is_harmless(engine, network):
    engine.cancel(99)
    frames = run(engine, sequence(1, PROMPT, 3))
    engine.cancel(1)

    assert written(greedy(network(), PROMPT, 3)) == text_of(frames, 1)


def test_all_can_be_dropped_in_whatever_state_they_are(engine, network):
    for id_ in range(MAX_SEQUENCES - 1):
        engine.add(sequence(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES - 1):
        step_until(engine, id_)
    engine.add(sequence(100, LONG, 60))
    engine.add(sequence(101, PROMPT, 60))
    turn(engine)

    lost = engine.drop_all()

    assert {*range(MAX_SEQUENCES - 1), 100, 101} == set(lost)
    assert len(lost) == MAX_SEQUENCES + 1
    assert not engine.busy
    assert turn(engine) == []
    assert written(greedy(network(), PROMPT, 4)) == text_of(run(engine, sequence(1, PROMPT, 4)), 1)


def test_dropping_nothing_is_harmless(engine):
    assert engine.drop_all() == []


# Models that are served in turn


def test_a_model_whose_caches_cannot_be_merged_is_served_in_turn(network):
    engine = Engine(network("chunked attention"), [])

    frames = run(engine, sequence(1, PROMPT, 5), sequence(2, [5], 5), sequence(3, PROMPT, 5))

    assert not engine.batched
    ids = [frame.id for frame in frames]
    assert sorted(ids) == ids
    assert {1, 2, 3} == set(ids)


def test_any_model_can_be_served_in_turn(network, monkeypatch):
    monkeypatch.setattr(engine_module, "can_batch", lambda _: False)
    prompts = [PROMPT, LONG[:30], [5]]

    frames = run(Engine(network(), []), *[sequence(id_, prompt, 10) for id_, prompt in enumerate(prompts)])

    assert [written(greedy(network(), prompt, 10)) for prompt in prompts] == [text_of(frames, id_) for id_ in range(3)]
    ids = [frame.id for frame in frames]
    assert sorted(ids) == ids


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_sequence_that_is_cancelled_gives_its_turn_to_the_next(network, steps):
    engine = Engine(network("chunked attention"), [])
    engine.add(sequence(1, LONG, 100))
    engine.add(sequence(2, PROMPT, 5))
    for _ in range(steps):
        turn(engine)

    engine.cancel(1)

    frames = run(engine)
    assert {2} == {frame.id for frame in frames}
    assert written(greedy(network("chunked attention"), PROMPT, 5)) == text_of(frames, 2)


def test_one_that_waits_for_its_turn_can_be_cancelled(network):
    engine = Engine(network("chunked attention"), [])
    engine.add(sequence(1, PROMPT, 5))
    engine.add(sequence(2, PROMPT, 5))
    turn(engine)

    engine.cancel(2)

    assert {1} == {frame.id for frame in run(engine)}


def test_all_can_be_dropped_while_one_has_its_turn(network):
    engine = Engine(network("chunked attention"), [])
    for id_ in (1, 2):
        engine.add(sequence(id_, PROMPT, 5))
    step_until(engine, 1)

    assert [1, 2] == sorted(engine.drop_all())

    assert written(greedy(network("chunked attention"), [5], 5)) == text_of(run(engine, sequence(3, [5], 5)), 3)


# Stats


def test_memory_is_reported_whenever_a_sequence_is_done(engine):
    engine.add(sequence(1, PROMPT, 3))
    engine.add(sequence(2, PROMPT, 6))

    steps = []
    while engine.busy:
        steps.append(turn(engine))

    for frames in steps:
        done = any(isinstance(frame, ipc.Done) for frame in frames)
        assert done == (bool(frames) and isinstance(frames[-1], ipc.Stats))
    (last,) = [frame for frame in steps[-1] if isinstance(frame, ipc.Stats)]
    assert last.active_bytes > 0
