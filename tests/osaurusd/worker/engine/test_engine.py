"""Requests from prompt to `Completed`: their events, choices, and how they share batches."""

import pytest

from osaurusd.inference.events import (
    Completed,
    Delta,
    Finished,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import messages
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.planner import MAX_SEQUENCES
from osaurusd.worker.frontend.text_assembler import OutputDelta
from tests.osaurusd.worker.engine.harness import (
    WITH_CACHE,
    AlternatingConstraint,
    FakeClock,
    FakeOutput,
    build_request,
    echo,
    events_of,
    finish_reason_of,
    first_new_token,
    run,
    run_until,
    step,
    text_of,
    to_text,
    tokens_of,
    usage_of,
)
from tests.osaurusd.worker.networks import (
    KINDS,
    PROMPT,
    VOCABULARY,
    RecordingNetwork,
    greedy,
    greedy_batch,
    is_greedy,
    sample,
    select,
    tokens,
)

pytestmark = pytest.mark.usefixtures("share_probes")

LONG = tokens(300)
RANDOM = SamplingParams(temperature=1.5, seed=11)


@pytest.fixture
def recording(network):
    return RecordingNetwork(network())


@pytest.fixture
def engine(recording):
    return Engine(recording, [], WITH_CACHE)


# Events


def test_a_stream_is_started_then_deltas_then_finished_then_completed(network):
    engine = Engine(network(), [], WITH_CACHE, clock=FakeClock())

    frames = run(engine, build_request(1, PROMPT, 3))

    assert [
        Started(prompt_tokens=3),
        *[Delta(text=to_text([token])) for token in greedy(network(), PROMPT, 3)],
        Delta(text="cut "),
        Finished(reason="length"),
        Completed(usage=Usage(prompt_tokens=3, completion_tokens=3)),
    ] == events_of(frames, 1)


def test_started_and_completed_report_cached_tokens(engine):
    run(engine, build_request(1, LONG))

    frames = run(engine, build_request(2, LONG))

    assert Started(prompt_tokens=300, cached_tokens=299) == events_of(frames, 2)[0]
    assert 299 == usage_of(frames, 2).cached_tokens


@pytest.mark.parametrize("kind", ["llama", "llama4"])
def test_a_request_with_several_choices_starts_once(network, kind):
    frames = run(Engine(network(kind), [], WITH_CACHE), build_request(1, LONG, n=3))

    assert [True] + [False] * (len(frames) - 1) == [isinstance(event, Started) for event in events_of(frames, 1)]


def test_timings_separate_queue_prefill_and_decode(recording):
    clock = FakeClock()
    engine = Engine(recording, [], Limits(), clock=clock)
    engine.add(build_request(1, PROMPT, 2))
    clock.advance(3)
    recording.on_call = lambda: clock.advance(1)

    frames = run(engine)

    assert Timings(queue=3, prefill=1, decode=2) == events_of(frames, 1)[-1].timings


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", select(KINDS, "llama", "gemma3"))
def test_max_tokens_is_exact(network, kind, count):
    frames = run(Engine(network(kind), [], WITH_CACHE), build_request(1, PROMPT, count))

    assert greedy(network(kind), PROMPT, count) == tokens_of(frames, 1)
    assert ("length", count) == (finish_reason_of(frames, 1), usage_of(frames, 1).completion_tokens)


@pytest.mark.parametrize("kind", select(["llama", "gemma3", "llama4"], "llama"))
@pytest.mark.parametrize("max_tokens", [None, 50])
def test_an_end_token_stops_and_is_neither_output_nor_counted(network, kind, max_tokens):
    output = greedy(network(kind), LONG, 12)
    at = first_new_token(output)
    engine = Engine(network(kind), [output[at], 96], WITH_CACHE)

    frames = run(engine, build_request(1, LONG, max_tokens or at + 1))

    assert to_text(output[:at]) == text_of(frames, 1)
    assert ("stop", at) == (finish_reason_of(frames, 1), usage_of(frames, 1).completion_tokens)


def test_output_that_is_only_an_end_token_is_empty(network):
    (end,) = greedy(network(), PROMPT, 1)

    frames = run(Engine(network(), [end], WITH_CACHE, clock=FakeClock()), build_request(1, PROMPT))

    assert [
        Started(prompt_tokens=3),
        Delta(),
        Finished(reason="stop"),
        Completed(usage=Usage(prompt_tokens=3)),
    ] == events_of(frames, 1)


@pytest.mark.parametrize("max_tokens", [None, 50])
def test_a_stop_string_finishes_the_choice_and_is_reported(engine, network, max_tokens):
    output = greedy(network(), LONG, 12)
    at = first_new_token(output)

    frames = run(engine, build_request(1, LONG, max_tokens or at + 1, output=lambda: FakeOutput(stop=output[at])))

    assert to_text(output[:at]) == text_of(frames, 1)
    assert Finished(reason="stop", stop=to_text([output[at]])) in events_of(frames, 1)
    assert at + 1 == usage_of(frames, 1).completion_tokens


class ToolCallOutput(FakeOutput):
    """Output with one token of reasoning and then a tool call."""

    def add(self, token, score=None):
        self.has_tool_calls = bool(self.scores)
        self.reasoning_tokens = 1
        return super().add(token, score)


@pytest.mark.parametrize("stops", [True, False])
def test_tool_calls_are_the_finish_reason_unless_the_output_is_cut(engine, network, stops):
    output = greedy(network(), LONG, 12)
    stop = output[first_new_token(output)] if stops else None

    frames = run(engine, build_request(1, LONG, 9, n=2, output=lambda: ToolCallOutput(stop=stop)))

    assert ["tool_calls" if stops else "length"] * 2 == [finish_reason_of(frames, 1, index) for index in range(2)]
    assert 2 == usage_of(frames, 1).reasoning_tokens


class LateOutput(FakeOutput):
    """Output that holds back its first two tokens."""

    def add(self, token, score=None):
        delta = super().add(token, score)
        return delta if len(self.scores) > 2 else None


def test_the_first_delta_is_sent_with_the_first_token_even_if_it_is_empty(engine, network):
    frames = run(engine, build_request(1, PROMPT, 4, output=LateOutput))

    deltas = [Delta(text=to_text([token])) for token in greedy(network(), PROMPT, 4)[2:]]
    assert [Delta(), *deltas] == events_of(frames, 1)[1:4]


def test_a_delta_has_all_parts_of_the_output(engine):
    call = ToolCallDelta(index=0, name="f")
    logprob = TokenLogprob(text="x", bytes=[120])

    class RichOutput(FakeOutput):
        def add(self, _, score=None):
            return OutputDelta(text="a", reasoning="b", tool_calls=[call], logprobs=[logprob])

    frames = run(engine, build_request(1, PROMPT, 1, output=RichOutput))

    assert Delta(text="a", reasoning="b", tool_calls=[call], logprobs=[logprob]) == events_of(frames, 1)[1]


def test_scores_reach_only_the_outputs_that_request_them(engine, network):
    scored, plain = build_request(1, PROMPT, 3, logprobs=2), build_request(2, PROMPT, 3)

    run(engine, scored, plain)

    assert greedy(network(), PROMPT, 3) == [score.top[0][0] for score in scored.choices[0].output.scores]
    assert [None] * 3 == plain.choices[0].output.scores


# Several choices


@pytest.mark.parametrize("kind", select(["llama", "gemma3", "llama4"], "llama"))
def test_each_choice_gets_the_output_of_a_separate_request(network, kind):
    separate = []
    for index in range(3):
        request = build_request(1, LONG, 9, RANDOM)
        request.choices[0].sampling.index = index
        separate.append(tokens_of(run(Engine(network(kind), [], WITH_CACHE), request), 1))

    frames = run(Engine(network(kind), [], WITH_CACHE), build_request(1, LONG, 9, RANDOM, n=3))

    assert separate == [tokens_of(frames, 1, index) for index in range(3)]
    assert len({tuple(output) for output in separate}) == 3
    assert ["length"] * 3 == [finish_reason_of(frames, 1, index) for index in range(3)]
    assert Usage(prompt_tokens=300, completion_tokens=27) == usage_of(frames, 1)


def test_a_choice_may_finish_long_before_another(network):
    output = greedy(network(), LONG, 12)
    request = build_request(1, LONG, 30, n=2)
    request.choices[1].output = FakeOutput(stop=output[0])

    frames = run(Engine(network(), [], WITH_CACHE), request)

    assert [1, 0] == [event.index for event in events_of(frames, 1) if isinstance(event, Finished)]
    assert 31 == usage_of(frames, 1).completion_tokens
    assert is_greedy(network(), LONG, tokens_of(frames, 1))


# Several requests


@pytest.mark.parametrize("kind", sample(KINDS))
def test_concurrent_requests_get_the_same_output_as_separate_ones(network, kind):
    prompts = [[5], PROMPT, LONG[:20], [11] * 5, PROMPT, LONG, [5]]
    requests = [build_request(id_, prompt, 10) for id_, prompt in enumerate(prompts)]

    frames = run(Engine(network(kind), [], WITH_CACHE), *requests)

    for id_, prompt in enumerate(prompts):
        output = tokens_of(frames, id_)
        assert len(output) == 10
        assert is_greedy(network(kind), prompt, output)
        assert len(prompt) == usage_of(frames, id_).prompt_tokens


def test_requests_with_different_sampling_share_a_batch(network):
    def requests():
        return [
            build_request(0, PROMPT, 10),
            build_request(1, LONG, 10, RANDOM),
            build_request(2, [5], 10, constraint=AlternatingConstraint()),
            build_request(3, LONG, 10, RANDOM, logprobs=3),
        ]

    separate = [text_of(run(Engine(network(), [], WITH_CACHE), request), request.id) for request in requests()]
    recording = RecordingNetwork(network())

    frames = run(Engine(recording, [], WITH_CACHE), *requests())

    assert separate == [text_of(frames, id_) for id_ in range(4)]
    assert (4, 1) in recording.shapes
    assert [1, 0] * 5 == [token % 2 for token in tokens_of(frames, 2)]


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2", "falcon_h1"])
def test_a_request_may_join_while_others_decode(network, kind):
    engine = Engine(network(kind), [], WITH_CACHE)
    engine.add(build_request(1, PROMPT, 30))
    frames = run_until(engine, 1, 5)

    frames += run(engine, build_request(2, LONG, 10))

    for id_, prompt, count in ((1, PROMPT, 30), (2, LONG, 10)):
        output = tokens_of(frames, id_)
        assert len(output) == count
        assert is_greedy(network(kind), prompt, output)


def test_no_more_than_the_maximum_number_of_sequences_decode_together(engine, network):
    prompts = {id_: [id_ % VOCABULARY, 1, 2] for id_ in range(MAX_SEQUENCES + 3)}
    for id_, prompt in prompts.items():
        engine.add(build_request(id_, prompt, 40))

    frames, max_together = [], 0
    while engine.busy:
        new = step(engine)
        max_together = max(max_together, len({frame.id for frame in new if isinstance(frame.event, Delta)}))
        frames += new

    assert max_together == MAX_SEQUENCES
    assert greedy_batch(network(), list(prompts.values()), 40) == [tokens_of(frames, id_) for id_ in prompts]


def test_stats_are_sent_whenever_a_choice_finishes(engine):
    engine.add(build_request(1, LONG, 3))
    engine.add(build_request(2, PROMPT, 6))

    steps = []
    while engine.busy:
        steps.append(engine.decode())
        engine.prefill()

    for frames in steps:
        finished = any(isinstance(frame, messages.Output) and isinstance(frame.event, Finished) for frame in frames)
        assert finished == any(isinstance(frame, messages.Stats) for frame in frames)
    (stats,) = [frame for frame in steps[-1] if isinstance(frame, messages.Stats)]
    assert 0 < stats.prefix_cache_bytes < stats.active_bytes


def test_progress_counts_passes_and_reserved_bytes_follow_requests(network):
    engine = Engine(network(), [], Limits(memory_bytes=2**40))
    idle_bytes, idle_progress = engine.reserved_bytes, engine.progress
    engine.add(build_request(1, LONG, 50))
    engine.prefill()

    assert engine.reserved_bytes > idle_bytes
    while engine.busy:
        progress = engine.progress
        step(engine)
        assert engine.progress > progress
    assert engine.progress >= idle_progress + 50
    assert engine.reserved_bytes == idle_bytes


def test_a_model_that_cannot_batch_serves_one_sequence_at_a_time(network):
    recording = RecordingNetwork(network("llama4"))
    engine = Engine(recording, [], WITH_CACHE)
    recording.shapes.clear()

    frames = run(engine, build_request(1, PROMPT, 5, n=2), build_request(2, [5], 5), build_request(3, PROMPT, 5))

    assert not engine.layout.batchable
    assert {1} == {rows for rows, _ in recording.shapes}
    ids = [frame.id for frame in frames]
    assert sorted(ids) == ids
    assert greedy(network("llama4"), [5], 5) == tokens_of(frames, 2)


# Echo


@pytest.mark.parametrize("kind", ["llama", "llama4"])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_the_prompt_is_echoed_before_each_choice(network, kind, logprobs):
    request = build_request(1, LONG, 4, n=2, logprobs=logprobs, echo=echo, needs_prompt_logprobs=logprobs is not None)

    frames = run(Engine(network(kind), [], WITH_CACHE), request)

    for index in range(2):
        first, *_ = [e for e in events_of(frames, 1) if isinstance(e, Delta) and e.index == index]
        assert ("prompt ", 0 if logprobs is None else 299) == (first.text, len(first.logprobs))
        assert f"prompt {to_text(greedy(network(kind), LONG, 4))}cut " == text_of(frames, 1, index)


@pytest.mark.parametrize("logprobs", [None, 0])
def test_an_echo_without_output_costs_only_the_prompt(engine, recording, logprobs):
    request = build_request(1, LONG, 0, logprobs=logprobs, echo=echo, needs_prompt_logprobs=logprobs is not None)
    recording.shapes.clear()

    frames = run(engine, request)

    assert [Started, Delta, Finished, Completed] == [type(event) for event in events_of(frames, 1)]
    assert "length" == finish_reason_of(frames, 1)
    assert Usage(prompt_tokens=300) == usage_of(frames, 1)
    assert 300 == sum(width for _, width in recording.shapes)
    assert not engine.busy
