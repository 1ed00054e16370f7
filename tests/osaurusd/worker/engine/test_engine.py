import math
from dataclasses import replace

import mlx.core as mx
import pytest

from osaurusd.inference.events import Completed, Delta, Finished, Logprob, TokenLogprob, ToolCallDelta
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine import engine as engine_module
from osaurusd.worker.engine.decode import MAX_SEQUENCES
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.probe import PROBE_TOKENS, Probe
from osaurusd.worker.frontend.text_assembler import OutputDelta
from tests.osaurusd.worker.networks import (
    GREEDY,
    KINDS,
    PROMPT,
    VOCABULARY,
    Odd,
    Saying,
    Watched,
    done_of,
    greedy,
    greedy_all,
    greedy_along,
    reason_of,
    request,
    run,
    said_in,
    text_of,
    tokens,
    turn,
    until,
    written,
)

LONG = tokens(300)
HOT = SamplingParams(temperature=1.5, seed=11)
PLENTY = Limits(prefix_cache_bytes=2**30)


@pytest.fixture
def watched(network):
    """A network whose calls are noted."""
    return Watched(network())


@pytest.fixture
def engine(watched):
    return Engine(watched, [], PLENTY)


def failed_in(frames):
    return {frame.id: frame for frame in frames if isinstance(frame, messages.Failed)}


def fresh(said):
    """Where a token stands that has not been there before, and is not the first."""
    return next(at for at in range(2, len(said)) if said[at] not in said[:at])


def fresh_in(said, other):
    """A token that one has said and another has not, and that no probe is made with."""
    return next(token for token in said if token >= PROBE_TOKENS and token not in other)


# What a request gets


def test_an_answer_is_deltas_and_then_its_end_and_the_requests(engine, network):
    frames = run(engine, request(1, PROMPT, 3))

    assert [
        *[Delta(id=1, text=written([token])) for token in greedy(network(), PROMPT, 3)],
        Delta(id=1, text="cut "),
        Finished(id=1, reason="length"),
        Completed(id=1, prompt_tokens=3, completion_tokens=3),
    ] == frames


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_max_tokens_is_exact(network, kind, count):
    frames = run(Engine(network(kind), [], PLENTY), request(1, PROMPT, count))

    assert greedy(network(kind), PROMPT, count) == said_in(text_of(frames, 1))
    assert ("length", count) == (reason_of(frames, 1), done_of(frames, 1).completion_tokens)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "llama4"])
@pytest.mark.parametrize("most", [0, 50])
def test_an_end_token_stops_and_is_neither_told_nor_counted(network, kind, most):
    said = greedy(network(kind), LONG, 12)
    at = fresh(said)

    frames = run(Engine(network(kind), [said[at], 96], PLENTY), request(1, LONG, most or at + 1))

    assert written(said[:at]) == text_of(frames, 1)
    assert ("stop", at) == (reason_of(frames, 1), done_of(frames, 1).completion_tokens)


def test_an_answer_that_is_only_an_end_token_is_empty(network):
    (end,) = greedy(network(), PROMPT, 1)

    frames = run(Engine(network(), [end], PLENTY), request(1, PROMPT))

    assert [
        Delta(id=1),
        Finished(id=1, reason="stop"),
        Completed(id=1, prompt_tokens=3, completion_tokens=0),
    ] == frames


@pytest.mark.parametrize("most", [0, 50])
def test_an_answer_that_is_complete_ends(engine, network, most):
    said = greedy(network(), LONG, 12)
    at = fresh(said)

    frames = run(engine, request(1, LONG, most or at + 1, answer=lambda: Saying(stop=said[at])))

    assert written(said[:at]) == text_of(frames, 1)
    assert ("stop", at + 1) == (reason_of(frames, 1), done_of(frames, 1).completion_tokens)


class Calling(Saying):
    """An answer that has told a call by its second token, and thought before it."""

    def add(self, token, score=None):
        self.has_tool_calls = bool(self.scores)
        self.reasoning_tokens = 1
        return super().add(token, score)


@pytest.mark.parametrize("stop", [True, False])
def test_an_answer_with_a_call_ends_for_it_unless_it_was_cut(engine, network, stop):
    said = greedy(network(), LONG, 12)
    at = fresh(said)

    frames = run(engine, request(1, LONG, 9, n=2, answer=lambda: Calling(stop=said[at] if stop else None)))

    assert ["tool_calls" if stop else "length"] * 2 == [reason_of(frames, 1, index) for index in range(2)]
    assert 2 == done_of(frames, 1).reasoning_tokens


class Scored(Saying):
    """An answer that tells how likely each token was."""

    def add(self, token, score=None):
        tops = [Logprob(text="", bytes=[], logprob=logprob) for _, logprob in score.top]
        told = TokenLogprob(text="", bytes=[], logprob=score.logprob, top=tops)
        return OutputDelta(text=written([token]), tokens=[told])

    def finish(self, *, cut):
        return None


class Late(Saying):
    """An answer that is sure of nothing before its third token."""

    def add(self, token, score=None):
        news = super().add(token, score)
        return news if len(self.scores) > 2 else None


def test_the_first_delta_comes_with_the_first_token_even_if_it_is_empty(engine, network):
    frames = run(engine, request(1, PROMPT, 4, answer=Late))

    last = [Delta(id=1, text=written([token])) for token in greedy(network(), PROMPT, 4)[2:]]
    assert [Delta(id=1), *last] == frames[:3]


def test_all_that_is_new_is_told(engine):
    call = ToolCallDelta(index=0, name="f")
    token = TokenLogprob(text="x", bytes=[120])

    class Rich(Saying):
        def add(self, _, score=None):
            return OutputDelta(text="a", reasoning="b", calls=[call], tokens=[token])

    frames = run(engine, request(1, PROMPT, 1, answer=Rich))

    assert Delta(id=1, text="a", reasoning="b", calls=[call], tokens=[token]) == frames[0]


def test_scores_reach_the_answer(engine, network):
    scored, plain = request(1, PROMPT, 3, scored=2), request(2, PROMPT, 3)

    run(engine, scored, plain)

    said = greedy(network(), PROMPT, 3)
    assert said == [score.top[0][0] for score in scored.choices[0].answer.scores]
    assert [None] * 3 == plain.choices[0].answer.scores


# Several answers


@pytest.mark.parametrize("kind", ["llama", "gemma3", "llama4"])
def test_each_of_several_answers_has_its_own_way_and_end(network, kind):
    alone = [said_in(text_of(run(Engine(network(kind), [], PLENTY), one), 1)) for one in numbered(HOT, 3)]

    frames = run(Engine(network(kind), [], PLENTY), request(1, LONG, 9, HOT, n=3))

    assert alone == [said_in(text_of(frames, 1, index)) for index in range(3)]
    assert len({tuple(said) for said in alone}) == 3
    assert ["length"] * 3 == [reason_of(frames, 1, index) for index in range(3)]
    done = done_of(frames, 1)
    assert (300, 27, 0) == (done.prompt_tokens, done.completion_tokens, done.cached_tokens)


def numbered(sampling, count):
    """Requests for one answer each: those that a request for several would have."""
    for number in range(count):
        one = request(1, LONG, 9, sampling)
        one.choices[0].sampling.number = number
        yield one


def test_an_answer_may_end_long_before_another(network):
    engine = Engine(network(), [], PLENTY)
    said = greedy(network(), LONG, 12)
    order = request(1, LONG, 30, n=2)
    order.choices[1].answer = Saying(stop=said[0])

    frames = run(engine, order)

    ends = [frame.index for frame in frames if isinstance(frame, Finished)]
    assert [1, 0] == ends
    assert 31 == done_of(frames, 1).completion_tokens
    assert greedy_along(network(), LONG, said_in(text_of(frames, 1))) == said_in(text_of(frames, 1))


# Several requests


@pytest.mark.parametrize("kind", KINDS)
def test_requests_at_once_get_what_each_gets_alone(network, kind):
    prompts = [[5], PROMPT, LONG[:20], [11] * 5, PROMPT, LONG, [5]]

    frames = run(Engine(network(kind), [], PLENTY), *[request(id_, prompt, 10) for id_, prompt in enumerate(prompts)])

    assert [greedy(network(kind), prompt, 10) for prompt in prompts] == [
        said_in(text_of(frames, id_)) for id_ in range(len(prompts))
    ]
    assert [len(prompt) for prompt in prompts] == [done_of(frames, id_).prompt_tokens for id_ in range(len(prompts))]


def test_seeded_constrained_and_scored_ones_share_a_batch_with_free_ones(network):
    def orders():
        return [
            request(0, PROMPT, 10),
            request(1, LONG, 10, HOT),
            request(2, [5], 10, constraint=Odd()),
            request(3, LONG, 10, HOT, scored=3),
        ]

    alone = [text_of(run(Engine(network(), [], PLENTY), order), order.id) for order in orders()]
    watched = Watched(network())

    frames = run(Engine(watched, [], PLENTY), *orders())

    assert alone == [text_of(frames, id_) for id_ in range(4)]
    assert (4, 1) in watched.shapes
    assert [1, 0] * 5 == [token % 2 for token in said_in(alone[2])]


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2", "falcon_h1"])
def test_a_request_may_join_while_others_decode(network, kind):
    engine = Engine(network(kind), [], PLENTY)
    engine.add(request(1, PROMPT, 30))
    frames = until(engine, 1, 5)

    frames += run(engine, request(2, LONG, 10))

    assert greedy(network(kind), PROMPT, 30) == said_in(text_of(frames, 1))
    assert greedy(network(kind), LONG, 10) == said_in(text_of(frames, 2))


def test_more_than_fit_wait_for_a_place(engine, network):
    prompts = {id_: [id_ % VOCABULARY, 1, 2] for id_ in range(MAX_SEQUENCES + 3)}
    for id_, prompt in prompts.items():
        engine.add(request(id_, prompt, 40))

    frames, most = [], 0
    while engine.busy:
        news = turn(engine)
        most = max(most, len({frame.id for frame in news if isinstance(frame, Delta)}))
        frames += news

    assert most == MAX_SEQUENCES
    assert greedy_all(network(), list(prompts.values()), 40) == [said_in(text_of(frames, id_)) for id_ in prompts]


def test_memory_is_reported_whenever_an_answer_ends(engine):
    engine.add(request(1, LONG, 3))
    engine.add(request(2, PROMPT, 6))

    steps = []
    while engine.busy:
        steps.append(engine.decode())
        engine.prefill()

    for frames in steps:
        ended = any(isinstance(frame, Finished) for frame in frames)
        assert ended == any(isinstance(frame, messages.Stats) for frame in frames)
    (last,) = [frame for frame in steps[-1] if isinstance(frame, messages.Stats)]
    assert 0 < last.prefix_cache_bytes < last.active_bytes


# Models that are served in turn


def test_a_model_whose_caches_cannot_be_merged_is_served_in_turn(network):
    watched = Watched(network("llama4"))
    engine = Engine(watched, [], PLENTY)

    frames = run(engine, request(1, PROMPT, 5, n=2), request(2, [5], 5), request(3, PROMPT, 5))

    assert not engine.layout.batchable
    assert {1} == {rows for rows, _ in watched.shapes}
    ids = [frame.id for frame in frames]
    assert sorted(ids) == ids
    assert greedy(network("llama4"), [5], 5) == said_in(text_of(frames, 2))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_request_that_is_cancelled_gives_its_turn_to_the_next(network, steps):
    engine = Engine(network("llama4"), [], PLENTY)
    engine.add(request(1, LONG, 100, n=2))
    engine.add(request(2, PROMPT, 5))
    for _ in range(steps):
        turn(engine)

    engine.cancel(1)

    frames = run(engine)
    assert {2} == {frame.id for frame in frames}
    assert greedy(network("llama4"), PROMPT, 5) == said_in(text_of(frames, 2))


# Echo


def echo(scores):
    return OutputDelta(
        text="prompt ", tokens=[TokenLogprob(text="", bytes=[], logprob=score.logprob) for score in scores]
    )


@pytest.mark.parametrize("kind", ["llama", "llama4"])
@pytest.mark.parametrize("scored", [None, 0])
def test_a_prompt_is_echoed_before_each_answer(network, kind, scored):
    order = request(1, LONG, 4, n=2, scored=scored, echo=echo, needs_prompt_logprobs=scored is not None)

    frames = run(Engine(network(kind), [], PLENTY), order)

    for index in range(2):
        first, *_ = [frame for frame in frames if isinstance(frame, Delta) and frame.index == index]
        assert ("prompt ", 0 if scored is None else 299) == (first.text, len(first.tokens))
        assert f"prompt {written(greedy(network(kind), LONG, 4))}cut " == text_of(frames, 1, index)


@pytest.mark.parametrize("scored", [None, 0])
def test_an_echo_may_be_all_that_is_wanted(engine, watched, scored):
    order = request(1, LONG, 0, scored=scored, echo=echo, needs_prompt_logprobs=scored is not None)
    watched.shapes.clear()

    frames = run(engine, order)

    assert [Delta, Finished, Completed] == [type(frame) for frame in frames]
    assert ("length", 0, 300) == (reason_of(frames, 1), frames[-1].completion_tokens, frames[-1].prompt_tokens)
    assert 300 == sum(width for _, width in watched.shapes)
    assert not engine.busy


# Cancelling


# What is done with an engine before a request is cancelled.
STAGES = [
    pytest.param(lambda engine: [], id="waiting"),
    pytest.param(lambda engine: engine.prefill(), id="prefilling"),
    pytest.param(lambda engine: [*engine.prefill(), *engine.prefill(), *engine.prefill()], id="prefilled"),
    pytest.param(lambda engine: until(engine, 1), id="at its first token"),
    pytest.param(lambda engine: until(engine, 1, 5), id="decoding"),
]


@pytest.mark.parametrize("go", STAGES)
@pytest.mark.parametrize("n", [1, 3])
def test_a_cancelled_request_is_gone_at_once(network, monkeypatch, go, n):
    watched = Watched(network())
    engine = Engine(watched, [], PLENTY)
    monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: 150)
    engine.add(request(1, LONG, 100, n=n))
    go(engine)
    watched.shapes.clear()

    engine.cancel(1)

    assert not engine.busy
    assert [] == turn(engine) == watched.shapes
    assert greedy(network(), LONG, 4) == said_in(text_of(run(engine, request(2, LONG, 4)), 2))


@pytest.mark.parametrize("go", STAGES)
def test_a_cancelled_request_disturbs_nobody(network, monkeypatch, go):
    engine = Engine(network(), [], PLENTY)
    monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: 150)
    engine.add(request(2, PROMPT, 30))
    frames = until(engine, 2, 3)
    engine.add(request(1, LONG, 100, n=2))
    frames += [frame for frame in go(engine) if not isinstance(frame, messages.Stats)]

    engine.cancel(1)

    after = run(engine)
    assert {2} == {frame.id for frame in after}
    assert greedy(network(), PROMPT, 30) == said_in(text_of(frames + after, 2))


def test_a_cancelled_answer_is_kept_for_whoever_goes_on_from_it(engine):
    engine.add(request(1, LONG, 100))
    said = said_in(text_of(until(engine, 1, 20), 1))
    engine.cancel(1)

    frames = run(engine, request(2, [*LONG, *said, 1, 2, 3], 2))

    assert 300 + len(said) == done_of(frames, 2).cached_tokens


def test_a_place_that_a_cancelled_request_left_is_taken(engine):
    for id_ in range(MAX_SEQUENCES + 1):
        engine.add(request(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES):
        until(engine, id_)

    engine.cancel(3)

    assert 3 not in {frame.id for frame in until(engine, MAX_SEQUENCES, 2)}


def test_cancelling_what_is_not_there_is_harmless(engine, network):
    engine.cancel(99)
    frames = run(engine, request(1, PROMPT, 3))
    engine.cancel(1)

    assert greedy(network(), PROMPT, 3) == said_in(text_of(frames, 1))


def test_all_can_be_dropped_in_whatever_state_they_are(engine, network, monkeypatch):
    monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: 64)
    for id_ in range(MAX_SEQUENCES - 2):
        engine.add(request(id_, [id_, 1], 60))
    for id_ in range(MAX_SEQUENCES - 2):
        until(engine, id_)
    engine.add(request(100, LONG, 60))
    engine.add(request(101, tokens(300, 9000), 60, n=2))
    turn(engine)

    lost = engine.drop_all()

    assert [*range(MAX_SEQUENCES - 2), 100, 101] == sorted(lost)
    assert not engine.busy
    assert [] == turn(engine)
    assert greedy(network(), PROMPT, 4) == said_in(text_of(run(engine, request(1, PROMPT, 4)), 1))


# The queue


def test_who_would_wait_behind_too_many_is_refused(network):
    engine = Engine(network(), [], Limits(max_waiting=3))
    for id_ in range(MAX_SEQUENCES):
        engine.add(request(id_, [id_, 1], 60))
        turn(engine)

    refused = [failed_in(engine.add(request(100 + at, PROMPT, 4))).values() for at in range(5)]

    assert [0, 0, 0, 1, 1] == [len(one) for one in refused]
    ((failed,),) = refused[4:]
    assert (104, ErrorCode.QUEUE_FULL) == (failed.id, failed.code)
    assert "3 requests are waiting" in failed.message
    frames = run(engine)
    assert all(done_of(frames, 100 + at) for at in range(3))
    assert not {103, 104} & {frame.id for frame in frames}


def test_part_of_what_has_been_begun_waits_behind_any_number(network):
    engine = Engine(network("llama4"), [], Limits(max_waiting=1))
    for id_ in range(2):
        assert [] == engine.add(request(id_, PROMPT, 5))

    assert [2] == [*failed_in(engine.add(request(2, PROMPT, 5)))]
    assert [] == engine.add(request(3, PROMPT, 5, part=True))
    assert {0, 1, 3} == {frame.id for frame in run(engine) if isinstance(frame, Completed)}


def test_nobody_is_refused_where_there_is_room_to_start_at_once(network):
    """As many as come between two steps."""
    engine = Engine(network(), [], Limits(max_waiting=3))

    frames = run(engine, *[request(id_, [id_, 1], 4) for id_ in range(MAX_SEQUENCES)])

    assert {} == failed_in(frames)


def test_several_answers_of_one_request_are_one_in_the_queue(network):
    engine = Engine(network("llama4"), [], Limits(max_waiting=2))

    frames = run(engine, request(1, PROMPT, 2, n=4), request(2, PROMPT, 2))

    assert {} == failed_in(frames)


# Memory


class Tight:
    """An engine with room for what is given, to the byte, and no more.

    Args:
        network: to answer with.
        lengths: final lengths of sequences that decode together.
        joining: and of those that join them.
        prefix: bytes of the prefix cache's cap.
    """

    def __init__(self, network, monkeypatch, lengths, joining=(), prefix=0, spare=0):
        self.watched = Watched(network)
        self.engine = Engine(self.watched, [], Limits(prefix_cache_bytes=prefix))
        monkeypatch.setattr(self.engine._pace, "prefilled", lambda tokens, seconds: None)
        monkeypatch.setattr(self.engine._pace, "decoded", lambda seconds: None)
        self.engine._memory.pass_bytes_per_token = self.engine._memory.score_bytes = 0
        self.watched.shapes.clear()
        self.put_back = []
        put_back = self.engine._put_back
        monkeypatch.setattr(
            self.engine, "_put_back", lambda *answer: self.put_back.append(answer[0].id) or put_back(*answer)
        )
        self.limit = self.engine._memory.peak_bytes(lengths, joining) + spare
        self.engine._memory.limit_bytes = self.limit
        self.engine._limits = replace(self.engine._limits, memory_bytes=self.limit)

    def most_together(self, *orders):
        """All frames, and how many sequences decoded together at most."""
        frames = run(self.engine, *orders)
        return frames, max((rows for rows, width in self.watched.shapes), default=0)


@pytest.fixture
def tight(network, monkeypatch):
    return lambda *args, kind="llama", **properties: Tight(network(kind), monkeypatch, *args, **properties)


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"prompt": PROMPT, "max_tokens": 4000}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 1500, "n": 2}, "max_tokens"),
        ({"prompt": tokens(3000), "max_tokens": 10}, "messages"),
        ({"prompt": tokens(3000), "max_tokens": 10, "bounded": False}, "messages"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(tight, order, param):
    tight = tight([], [2048])

    (failed,) = tight.engine.add(request(1, **order))

    assert (ErrorCode.REQUEST_EXCEEDS_MEMORY, param) == (failed.code, failed.param)
    needed = len(order["prompt"]) + (order["max_tokens"] if order.get("bounded", True) else 1)
    most = tight.engine._memory.most_tokens(order.get("n", 1))
    assert str(needed) in failed.message
    assert str(most) in failed.message
    assert not tight.engine.busy


def test_an_answer_that_only_the_context_bounds_ends_where_memory_does(tight):
    tight = tight([], [512])

    frames = run(tight.engine, request(1, PROMPT, 100_000, bounded=False))

    assert "length" == reason_of(frames, 1)
    assert 512 - 3 == done_of(frames, 1).completion_tokens


def test_what_does_not_fit_now_waits(tight, network):
    tight = tight([512], [512])

    frames, together = tight.most_together(*[request(id_, [id_, 2], 300) for id_ in range(3)])

    assert together == 2
    assert {} == failed_in(frames)
    for id_ in range(3):
        said = said_in(text_of(frames, id_))
        assert 300 == len(said)
        assert greedy_along(network(), [id_, 2], said) == said


def test_whoever_waits_for_room_is_not_overtaken(tight):
    tight = tight([512], [512])
    engine = tight.engine
    orders = [request(1, [1], 300), request(2, [2], 300), request(3, [3], 300), request(4, [4], 10)]

    frames, _ = tight.most_together(*orders)

    firsts = list(dict.fromkeys(frame.id for frame in frames))
    assert [1, 2, 3, 4] == firsts
    assert not engine.busy


# So that two may begin, and one has to be put back after 448 tokens.
SCANT = [4 + 64], [4 + 64]


@pytest.fixture
def reserves(monkeypatch):
    """Answers without a bound are given room in small portions."""
    monkeypatch.setattr(engine_module, "RESERVED_TOKENS", 64)


@pytest.mark.parametrize(("kind", "prefix"), [("llama", 0), ("llama", 2**30), ("gemma3", 2**30)])
def test_an_answer_that_outgrows_its_room_is_put_back_and_goes_on_the_same(tight, reserves, network, kind, prefix):
    tight = tight(*SCANT, kind=kind, prefix=prefix)
    free = [request(id_, [id_, 2, 3, 4], 600, sampling, bounded=False, scored=1) for id_, sampling in both()]
    alone = [
        text_of(run(Engine(network(kind), [], Limits()), request(id_, [id_, 2, 3, 4], 600, sampling)), id_)
        for id_, sampling in both()
    ]

    frames, together = tight.most_together(*free)

    assert (2, [2]) == (together, tight.put_back)
    assert alone == [text_of(frames, id_) for id_, _ in both()]
    assert [600, 600] == [done_of(frames, id_).completion_tokens for id_, _ in both()]
    assert [600, 600] == [len(order.choices[0].answer.scores) for order in free]


def both():
    return [(1, GREEDY), (2, SamplingParams(temperature=1.2, seed=3, frequency_penalty=0.1, top_p=0.9))]


def test_a_constrained_answer_that_is_put_back_keeps_to_its_constraint(tight, reserves):
    tight = tight(*SCANT)
    orders = [request(id_, [id_, 2, 3, 4], 600, bounded=False, constraint=Odd()) for id_ in (1, 2)]

    frames, _ = tight.most_together(*orders)

    assert [2] == tight.put_back
    for id_ in (1, 2):
        said = said_in(text_of(frames, id_))
        assert [1, 0] * 300 == [token % 2 for token in said]


def test_an_answer_that_is_put_back_echoes_its_prompt_once(tight, reserves):
    tight = tight(*SCANT)
    orders = [
        request(id_, [id_, 2, 3, 4], 600, bounded=False, echo=echo, scored=0, needs_prompt_logprobs=True)
        for id_ in (1, 2)
    ]

    frames, _ = tight.most_together(*orders)

    assert [2] == tight.put_back
    assert [1, 1] == [text_of(frames, id_).count("prompt") for id_ in (1, 2)]


def test_what_is_kept_goes_before_anybody_waits(tight):
    tight = tight([512], [512], prefix=2**30)
    run(tight.engine, request(1, tokens(400), 4), request(2, tokens(400, 9000), 4))
    assert tight.engine.stats().prefix_cache_bytes > 0

    tight.watched.shapes.clear()
    _frames, together = tight.most_together(request(3, [3], 300), request(4, [4], 300))

    assert together == 2


def test_what_is_kept_never_takes_what_running_answers_were_promised(tight):
    tight = tight([512], [512], prefix=2**30, spare=50_000)
    engine = tight.engine
    engine.add(request(1, tokens(400), 100))
    engine.add(request(2, tokens(400, 9000), 100))

    while engine.busy:
        turn(engine)
        decoding = [choice.reserved for _, choice in engine._decoding.values()]
        arriving = [choice.reserved for run in engine._prefiller.runs for choice in run.choices]
        assert engine._memory.peak_bytes(decoding, arriving) + engine._prefix.nbytes <= tight.limit


# Failures


def test_an_answer_that_cannot_be_read_costs_its_request_only(engine, network):
    said = greedy(network(), PROMPT, 8)
    at = fresh(said)
    engine.add(request(1, PROMPT, 30, n=3, answer=lambda: Saying(spoils=said[at])))

    frames = run(engine, request(2, LONG, 10), request(3, [5], 10))

    (failed,) = failed_in(frames).values()
    assert (1, "the answer could not be read: ValueError: unreadable") == (failed.id, failed.message)
    assert failed is [frame for frame in frames if frame.id == 1][-1]
    assert greedy(network(), LONG, 10) == said_in(text_of(frames, 2))
    assert greedy(network(), [5], 10) == said_in(text_of(frames, 3))


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_that_cannot_be_finished_costs_its_request_only(network, ends, n):
    said = greedy(network(), PROMPT, 8)
    at = fresh(said)
    engine = Engine(network(), [said[at]] if ends else [], PLENTY)
    order = request(1, PROMPT, at + 1, n=n, answer=lambda: Saying(unfinished=True))

    frames = run(engine, request(2, [5], 10, constraint=Odd()), order)

    (failed,) = failed_in(frames).values()
    assert (1, "the answer could not be read: ValueError: unfinished") == (failed.id, failed.message)
    assert {2} == {frame.id for frame in frames if isinstance(frame, Completed)}


def test_a_constraint_that_fails_costs_its_request_only(engine, network):
    engine.add(request(1, PROMPT, 30, n=2, constraint=Odd(most=4)))

    frames = run(engine, request(2, LONG, 10))

    (failed,) = failed_in(frames).values()
    assert 1 == failed.id
    assert "enough" in failed.message
    assert failed is [frame for frame in frames if frame.id == 1][-1]
    assert greedy(network(), LONG, 10) == said_in(text_of(frames, 2))


@pytest.mark.parametrize("echo", [None, lambda _: OutputDelta(text="prompt ")])
def test_an_answer_that_is_ready_goes_with_another_that_fails_in_the_same_turn(network, echo):
    watched = Watched(network())
    engine = Engine(watched, [], Limits())
    engine.add(request(1, PROMPT, 30, HOT, n=2, echo=echo))
    until(engine, 1, 12)
    one, other = engine._decoding.values()
    watched._poison = fresh_in(other[1].output_tokens, one[1].output_tokens)
    engine._put_back(*other)
    engine._put_back(*one)

    frames = run(engine, request(2, [5], 10))

    assert {1} == failed_in(frames).keys()
    assert messages.Failed is type([frame for frame in frames if frame.id == 1][-1])
    assert {2} == {frame.id for frame in frames if isinstance(frame, Completed)}


class Speechless:
    """A network whose logits are of no use.

    Args:
        network: does the work.
        value: what every logit is but that of token 5; that one too if it is not a number.
    """

    def __init__(self, network, value):
        self._network = network
        self._logits = mx.where(mx.arange(VOCABULARY) == 5, 0.0 if value == value else value, value)

    def __call__(self, tokens, cache=None):
        return 0 * self._network(tokens, cache=cache) + self._logits

    def __getattr__(self, name):
        return getattr(self._network, name)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("sampling", [GREEDY, HOT, SamplingParams(temperature=1.5, seed=11, top_p=0.5, top_k=3)])
def test_numbers_that_are_none_are_told_as_numbers(network, value, sampling):
    engine = Engine(Speechless(network(), value), [], Limits())

    frames = run(
        engine, request(1, PROMPT, 3, sampling, scored=2, echo=echo, needs_prompt_logprobs=True, answer=Scored)
    )

    assert "length" == reason_of(frames, 1)
    told = [token.logprob for frame in frames if isinstance(frame, Delta) for token in frame.tokens]
    assert 5 == len(told)
    assert all(map(math.isfinite, told))
    assert b"null" not in framing.encode(frame for frame in frames if isinstance(frame, Delta))


def test_a_model_that_cannot_process_any_prompt_loses_nobody(network, monkeypatch):
    """It raises, and whoever is lost then is told so."""
    watched = Watched(network())
    engine = Engine(watched, [], PLENTY)
    monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: 64)
    for id_, prompt in ((1, PROMPT), (2, LONG), (3, tokens(300, 9000))):
        engine.add(request(id_, prompt, 30))
    until(engine, 1)
    watched.failures = 10**6

    with pytest.raises(ValueError, match="broken"):
        engine.prefill()

    assert [1, 2, 3] == sorted(engine.drop_all())


def test_those_who_were_ready_are_not_lost_with_a_model_that_fails(network, monkeypatch):
    watched = Watched(network(), poison=VOCABULARY - 1)
    engine = Engine(watched, [], PLENTY)
    monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: 500)
    engine.add(request(1, PROMPT, 30))
    until(engine, 1)
    engine.add(request(2, [5, 6], 30))
    engine.add(request(3, [*tokens(100), VOCABULARY - 1], 30))
    monkeypatch.setattr(Probe, "of", lambda network: network.broken)

    with pytest.raises(AttributeError):
        engine.prefill()

    assert [1, 2, 3] == sorted(engine.drop_all())


def test_after_a_step_that_fails_it_goes_on_with_nothing(network):
    watched = Watched(network())
    engine = Engine(watched, [], PLENTY)
    engine.add(request(1, LONG, 30))
    until(engine, 1, 3)
    watched.failures = 1

    with pytest.raises(ValueError, match="broken"):
        engine.decode()
    assert [1] == engine.drop_all()

    frames = run(engine, request(2, LONG, 5))
    assert greedy(network(), LONG, 5) == said_in(text_of(frames, 2))
    assert 0 == done_of(frames, 2).cached_tokens
