import pytest

from osaurusd.inference.events import Completed, Delta
from osaurusd.rpc import messages
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.pace import MOST_TOKENS, WORTHWHILE_TOKENS
from osaurusd.worker.engine.prefill import LAST_PASS_LEAST, LAST_PASS_TOKENS
from tests.osaurusd.worker.networks import (
    KINDS,
    PROMPT,
    SLICEABLE,
    VOCABULARY,
    WITH_STATES,
    Watched,
    done_of,
    greedy_along,
    logprobs_along,
    reason_of,
    request,
    run,
    said_in,
    text_of,
    tokens,
    turn,
    until,
)

PLENTY = Limits(prefix_cache_bytes=2**30)
LONG = tokens(600)
ANSWER = 6


class Asking:
    """An engine, and who asks it: every answer is compared with what the network says without any cache.

    Args:
        network: answers.
        limits: of the engine.
    """

    def __init__(self, network, limits=PLENTY):
        self.network = network
        self.watched = Watched(network)
        self.engine = Engine(self.watched, [], limits)
        self._requests = {}

    def order(self, prompt, count=ANSWER, **properties):
        """A request with an id of its own."""
        made = request(len(self._requests) + 1, prompt, count, scored=0, **properties)
        self._requests[made.id] = made
        return made

    def ask(self, prompt, count=ANSWER, **properties):
        """What is answered and how many of the prompt's tokens were not computed anew."""
        order = self.order(prompt, count, **properties)
        return self.check(run(self.engine, order), order.id)

    def check(self, frames, id_):
        order = self._requests[id_]
        said = said_in(text_of(frames, id_))
        assert len(said) == order.max_tokens
        assert greedy_along(self.network, order.prompt, said) == said
        found = [score.logprob for score in order.choices[0].answer.scores]
        assert logprobs_along(self.network, order.prompt, said) == pytest.approx(found, abs=1e-3)
        return said, done_of(frames, id_).cached_tokens

    def computed(self, work):
        """What `work` returns, and how many tokens the network has read for it."""
        self.watched.shapes.clear()
        result = work()
        return result, sum(rows * width for rows, width in self.watched.shapes)

    def company(self, count=200):
        """Two answers that are under way, on other prompts; the request."""
        order = self.order(PROMPT, count, n=2)
        self.engine.add(order)
        until(self.engine, order.id, 2)
        self.watched.shapes.clear()
        return order


@pytest.fixture
def asking(network):
    return lambda kind="llama", limits=PLENTY: Asking(network(kind), limits)


@pytest.fixture
def pace(monkeypatch):
    """Sets the chunk sizes of an engine for good: in company, and alone."""

    def pace(engine, shared=WORTHWHILE_TOKENS, alone=MOST_TOKENS):
        monkeypatch.setattr(engine._pace, "tokens", lambda *, shared: sizes[shared])
        sizes = {True: shared, False: alone}

    return pace


def near_end(prompt):
    """Where a prompt's last state is kept."""
    return len(prompt) - LAST_PASS_LEAST


# What is taken over


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_asked_again_is_taken_over(asking, kind):
    asking = asking(kind)
    cold, cached = asking.ask(LONG)
    assert cached == 0

    (warm, cached), computed = asking.computed(lambda: asking.ask(LONG))

    assert cold == warm
    assert cached == (len(LONG) - 1 if kind in SLICEABLE else near_end(LONG))
    assert computed == len(LONG) - cached + ANSWER


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("common", [100, 256, 400, 512, 590])
def test_a_prompt_that_begins_alike_goes_on_from_there(asking, kind, common):
    asking = asking(kind)
    asking.ask(LONG, boundary=common)
    prompt = [*LONG[:common], *tokens(150, 5000)]

    (_, cached), computed = asking.computed(lambda: asking.ask(prompt))

    expected = common if kind in SLICEABLE or common < near_end(LONG) else near_end(LONG)
    assert expected == cached
    assert computed == len(prompt) - cached + ANSWER


@pytest.mark.parametrize("kind", WITH_STATES)
def test_where_prompts_part_without_notice_the_third_goes_on_from(asking, kind):
    asking = asking(kind)
    prompts = [[*LONG[:400], *tokens(150, start)] for start in (1000, 3000, 5000)]

    assert [0, 0, 400] == [asking.ask(prompt)[1] for prompt in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_talk_goes_on_from_the_last_answer(asking, kind):
    asking = asking(kind)
    talk = LONG[:300]
    cached = []
    for start in (1000, 2000, 3000):
        said, found = asking.ask(talk)
        cached.append(found)
        talk = [*talk, *said, *tokens(90, start)]

    turn = ANSWER + 90
    assert [0, 300 + ANSWER, 300 + turn + ANSWER] == cached


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [64, 80])
def test_it_is_the_same_in_company(asking, kind, chunk, pace):
    asking = asking(kind)
    pace(asking.engine, shared=chunk)
    company, frames, cached = asking.company(), [], []
    if kind == "llama4":  # it is served in turn, and its company would be over
        asking.engine.cancel(company.id)

    for prompt in (LONG, LONG, [*LONG[:400], *tokens(150, 5000)]):
        order = asking.order(prompt, boundary=400)
        asking.engine.add(order)
        while not (frames and any(isinstance(frame, Completed) and frame.id == order.id for frame in frames)):
            frames += turn(asking.engine)
        cached.append(asking.check(frames, order.id)[1])

    assert kind == "llama4" or company.id in {frame.id for frame in turn(asking.engine)}, "there was no company"
    assert [0, len(LONG) - 1 if kind in SLICEABLE else near_end(LONG), 400] == cached


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_any_more_is_computed_anew(asking, kind):
    roomy = asking(kind)
    roomy.ask(LONG)
    narrow = Asking(roomy.network, Limits(prefix_cache_bytes=roomy.engine.stats().prefix_cache_bytes * 5 // 4))
    other = tokens(600, 5000)

    cached = [narrow.ask(prompt)[1] for prompt in (LONG, other, LONG, LONG[:300], other)]

    assert [0, 0] == cached[:2]
    assert max(cached) < len(LONG) - 1
    assert narrow.engine.stats().prefix_cache_bytes <= narrow.engine._limits.prefix_cache_bytes


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_without_room_nothing_is_taken_over(asking, kind):
    asking = asking(kind, Limits())

    assert [0, 0] == [asking.ask(LONG)[1] for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_several_answers_cost_their_prompt_once(asking, kind):
    asking = asking(kind)

    order = asking.order(LONG, n=3)
    frames, computed = asking.computed(lambda: run(asking.engine, order))

    said = [said_in(text_of(frames, order.id, index)) for index in range(3)]
    assert said[0] == said[1] == said[2]
    assert greedy_along(asking.network, LONG, said[0]) == said[0]
    assert 0 == done_of(frames, order.id).cached_tokens
    again = {"llama4": 2 * LAST_PASS_LEAST}.get(kind, 0)
    assert len(LONG) + 3 * ANSWER + again == computed


@pytest.mark.parametrize("kind", SLICEABLE)
@pytest.mark.parametrize("alone", [MOST_TOKENS, 128])
def test_what_prompts_that_come_together_begin_with_is_computed_once(asking, kind, alone, pace):
    asking = asking(kind)
    pace(asking.engine, alone=alone, shared=alone)
    prompts = [[*LONG[:600], *tokens(50, start)] for start in (1000, 2000, 3000, 4000)]
    orders = [asking.order(prompt) for prompt in prompts]

    frames, computed = asking.computed(lambda: run(asking.engine, *orders))

    cached = [asking.check(frames, order.id)[1] for order in orders]
    assert cached[0] == 0
    assert min(cached[1:]) >= 600 - LAST_PASS_TOKENS
    assert computed <= 600 + len(prompts) * (50 + LAST_PASS_TOKENS + ANSWER)


def test_whoever_waits_for_anothers_beginning_does_not_wait_for_its_end(asking, pace):
    asking = asking()
    pace(asking.engine, alone=64, shared=64)
    asking.engine.add(asking.order([*LONG[:200], *tokens(500, 1000)]))
    short = asking.order([*LONG[:200], *tokens(20, 2000)])
    asking.engine.add(short)

    frames = until(asking.engine, short.id)

    assert {short.id} == {frame.id for frame in frames}


def test_whoever_waits_for_another_goes_on_if_that_is_cancelled(asking, pace):
    asking = asking()
    pace(asking.engine, alone=64)
    first, second = asking.order([*LONG, 1]), asking.order([*LONG, 2])
    asking.engine.add(first)
    asking.engine.add(second)
    turn(asking.engine)
    turn(asking.engine)

    asking.engine.cancel(first.id)

    _, cached = asking.check(run(asking.engine), second.id)
    assert cached == 128


# Chunks


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_in_chunks_gives_the_same_as_in_one_pass(asking, kind, pace):
    asking = asking(kind, Limits())
    pace(asking.engine, alone=100)

    asking.watched.shapes.clear()
    asking.ask(LONG)

    assert [100] * 5 + [100 - LAST_PASS_LEAST, LAST_PASS_LEAST] + [1] * ANSWER == asking.watched.chunks


def test_chunks_are_as_long_as_the_pace_says(asking, pace):
    asking = asking(limits=Limits())
    pace(asking.engine, shared=96)
    asking.company()

    asking.engine.add(order := asking.order(LONG, 1))
    until(asking.engine, order.id)

    assert [96] * 5 == asking.watched.chunks[:5]
    assert len(LONG) == sum(asking.watched.chunks)


@pytest.mark.parametrize("most", [16, 32, 64, 96])
@pytest.mark.parametrize("count", [17, 33, 40, 65, 70, 97, 128, 161, 600])
def test_no_pass_is_wasted_on_a_few_tokens(asking, pace, most, count):
    """The weights are read for each pass: as many as the budget makes necessary, and one for the end."""
    asking = asking(limits=Limits())
    pace(asking.engine, shared=most)
    asking.company()

    asking.engine.add(order := asking.order(LONG[:count], 1))
    until(asking.engine, order.id)

    assert sum(asking.watched.chunks) == count
    assert len(asking.watched.chunks) <= -(-count // most) + 1, asking.watched.chunks


def test_running_answers_get_a_token_between_two_chunks(asking, pace):
    asking = asking()
    pace(asking.engine, shared=64)
    company = asking.company()
    asking.engine.add(order := asking.order(LONG))

    between = []
    while not any(frame.id == order.id for frame in between):
        asking.watched.shapes.clear()
        between = turn(asking.engine)
        assert sum(asking.watched.chunks) <= 64 + LAST_PASS_LEAST
        assert {0, 1} == {frame.index for frame in between if frame.id == company.id}


# Turns


def test_a_short_prompt_is_not_stuck_behind_a_long_one(asking, pace):
    asking = asking()
    pace(asking.engine, alone=64)
    asking.engine.add(asking.order(LONG))
    turn(asking.engine)
    short = asking.order(tokens(60, 5000))
    asking.engine.add(short)

    asking.watched.shapes.clear()
    until(asking.engine, short.id)

    assert 60 == asking.watched.chunks[0]


def test_a_long_prompt_is_not_passed_over_for_ever(asking, pace):
    asking = asking()
    pace(asking.engine, alone=64, shared=64)
    long = asking.order(tokens(300))
    asking.engine.add(long)
    frames = []
    for at in range(40):
        asking.engine.add(asking.order(tokens(60, 1000 + 100 * at), 1))
        frames += turn(asking.engine)

    assert long.id in {frame.id for frame in frames}


def test_those_who_are_ready_at_once_begin_together_and_nobody_waits_for_the_rest(asking, pace):
    asking = asking()
    pace(asking.engine, alone=64, shared=64)
    for start in (1000, 2000, 3000):
        asking.engine.add(asking.order(tokens(50, start)))

    first = [asking.engine.decode(), asking.engine.prefill(), asking.engine.decode()]

    assert [] == first[0] == first[1]
    assert {1} == {frame.id for frame in first[2] if isinstance(frame, Delta)}


# Together


SHORT = [tokens(count, 1000 * count) for count in (1, 60, 2, 33, 20)]


@pytest.mark.parametrize("kind", SLICEABLE)
@pytest.mark.parametrize("company", [0, 1, 2])
def test_short_prompts_are_processed_together(asking, kind, company, pace):
    asking = asking(kind)
    pace(asking.engine, shared=512, alone=512)
    frames = []
    if company:
        asking.engine.add(asking.order(PROMPT, 60, n=company))
        frames += until(asking.engine, 1, company)
    orders = [asking.order(prompt, 20) for prompt in SHORT]

    asking.watched.shapes.clear()
    frames += run(asking.engine, *orders)

    assert (len(SHORT), 59) in asking.watched.shapes
    for order in orders:
        asking.check(frames, order.id)
        assert len(order.prompt) - 1 == asking.ask(order.prompt, 20)[1]


def test_prompts_that_others_have_begun_are_processed_together_too(asking, pace):
    asking = asking()
    pace(asking.engine, alone=512)
    asking.ask(LONG)
    orders = [asking.order([*LONG[:count], *tokens(30, 5000 + count)]) for count in (300, 512, 7)]

    frames = run(asking.engine, *orders)

    assert [300, 512, 7] == [asking.check(frames, order.id)[1] for order in orders]


def test_together_no_more_is_processed_than_the_budget_allows(asking, pace):
    asking = asking()
    asking.company()
    pace(asking.engine, shared=128)
    orders = [asking.order(tokens(40, 1000 * at)) for at in range(6)]
    for order in orders:
        asking.engine.add(order)

    asking.watched.shapes.clear()
    turn(asking.engine)

    assert sum(rows * width for rows, width in asking.watched.shapes if width > 1) <= 128
    frames = run(asking.engine)
    for order in orders:
        asking.check(frames, order.id)


def test_one_of_those_processed_together_that_fails_costs_its_request_only(network, pace):
    engine = Engine(Watched(network(), poison=VOCABULARY - 1), [], PLENTY)
    pace(engine, alone=512)
    prompts = {1: tokens(20), 2: [*tokens(10, 5000), VOCABULARY - 1, 3], 3: tokens(30, 9000)}

    frames = run(engine, *[request(id_, prompt) for id_, prompt in prompts.items()])

    assert [2] == [frame.id for frame in frames if isinstance(frame, messages.Failed)]
    for id_ in (1, 3):
        said = said_in(text_of(frames, id_))
        assert len(said) == 8
        assert greedy_along(network(), prompts[id_], said) == said


# Scoring


@pytest.mark.parametrize("kind", ["llama", "gemma3", "llama4"])
@pytest.mark.parametrize("count", [1, 2, 64, 65, 200])
def test_a_prompt_is_scored_token_by_token(asking, kind, count):
    asking = asking(kind)
    prompt = LONG[:count]
    told = []
    asking.ask(prompt)  # what is there already is of no use: its scores are not
    order = request(9, prompt, 3, scored=2, needs_prompt_logprobs=True, echo=lambda scores: told.append(scores))

    frames = run(asking.engine, order)

    assert greedy_along(asking.network, prompt, said_in(text_of(frames, 9))) == said_in(text_of(frames, 9))
    assert 0 == done_of(frames, 9).cached_tokens
    (scores,) = told
    expected = logprobs_along(asking.network, prompt[:1], prompt[1:]) if count > 1 else []
    assert expected == pytest.approx([score.logprob for score in scores], abs=1e-3)
    assert all(len(score.top) == 2 for score in scores)


# Failures


def test_a_prompt_that_cannot_be_processed_costs_its_request_only(network, pace):
    watched = Watched(network(), poison=VOCABULARY - 1)
    engine = Engine(watched, [], PLENTY)
    pace(engine, alone=64, shared=64)
    bad = [*tokens(150), VOCABULARY - 1, 5]

    frames = run(engine, request(1, tokens(100, 3000), 20), request(2, bad), request(3, tokens(300), 20))

    (failed,) = [frame for frame in frames if isinstance(frame, messages.Failed)]
    assert (2, "the model failed on this prompt: ValueError: poisoned") == (failed.id, failed.message)
    for id_, prompt in ((1, tokens(100, 3000)), (3, tokens(300))):
        assert "length" == reason_of(frames, id_)
        said = said_in(text_of(frames, id_))
        assert greedy_along(network(), prompt, said) == said
