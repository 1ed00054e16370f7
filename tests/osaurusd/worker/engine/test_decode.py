import mlx.core as mx
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine import caches
from osaurusd.worker.engine.decode import PADDING_COST_CPU, PADDING_COST_GPU, Decoder, Entrant, Group
from osaurusd.worker.engine.probe import Probe
from osaurusd.worker.engine.sampling import SamplingState
from osaurusd.worker.frontend.constraint import ConstraintFailed
from tests.osaurusd.worker.networks import (
    BATCHABLE,
    GREEDY,
    KINDS,
    WINDOW,
    Odd,
    Watched,
    greedy,
    greedy_along,
    logprobs_along,
    prefilled,
    tokens,
)

PROMPTS = {
    "one token": [5],
    "short": [7, 8, 9],
    "longer than the window": list(range(20)),
    "the same again and again": [11] * 5,
    "the same as another": [7, 8, 9],
    "longest": tokens(300),
}
HOT = SamplingParams(temperature=1.5, seed=11, top_p=0.95)


class Decoding:
    """A decoder, and what its sequences have got.

    Args:
        network: an mlx_lm model.
        padding: how many tokens of padding are worth a pass; None for any number, so that all share one lane.
    """

    def __init__(self, network, padding=None):
        self.network = Watched(network)
        self.layout = Probe.of(network).layout
        cost = PADDING_COST_CPU if mx.default_device() == mx.cpu else PADDING_COST_GPU
        worth = 10**6 if padding is None else padding
        self.decoder = Decoder(self.network, self.layout, worth * cost * self.layout.bytes_per_token)
        self.got = {}

    def join(self, *prompts, sampling=GREEDY, **properties):
        """Have sequences join at once; their rows."""
        rows = [SamplingState(sampling, prompt=prompt, **properties) for prompt in prompts]
        self.join_rows(dict(zip(rows, prompts, strict=True)))
        return rows

    def join_rows(self, prompts):
        entrants = []
        for row, prompt in prompts.items():
            cache, logits = prefilled(self.network, prompt)
            entrants.append(Entrant(row, cache, len(prompt), logits))
            self.got[row] = []
        self.decoder.join(entrants)

    def go(self, steps):
        for _ in range(steps):
            for token in self.decoder.step():
                self.got[token.row].append(token)

    def said(self, row):
        return [token.token for token in self.got[row]]


@pytest.fixture
def decoding(network):
    return lambda kind="llama", padding=None: Decoding(network(kind), padding)


# Together


@pytest.mark.parametrize("kind", BATCHABLE)
def test_sequences_that_join_at_once_get_what_each_gets_alone(decoding, kind):
    decoding = decoding(kind)

    rows = decoding.join(*PROMPTS.values())
    decoding.go(12)

    assert [6] == [len(lane) for lane in decoding.decoder.lanes]
    expected = [greedy(decoding.network, prompt, 12) for prompt in PROMPTS.values()]
    assert expected == [decoding.output_tokens(row) for row in rows]
    assert len({tuple(said) for said in expected}) == len(PROMPTS) - 1, "the prompts must make a difference"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_lone_sequence_gets_the_same(decoding, kind, prompt):
    decoding = decoding(kind)

    (row,) = decoding.join(prompt)
    decoding.go(2 * WINDOW)

    assert greedy_along(decoding.network, prompt, decoding.output_tokens(row)) == decoding.output_tokens(row)


@pytest.mark.parametrize("kind", BATCHABLE)
@pytest.mark.parametrize("script", ["JJJLLL", "JJLJLJLL", "JLJJLLJL", "JJJJLLLJ"])
@pytest.mark.parametrize("padding", [None, 50])
def test_whoever_joins_and_leaves_at_whatever_step_disturbs_nobody(decoding, kind, script, padding):
    """J: the next prompt joins. L: the oldest sequence leaves. Three steps after each, so that windows rotate."""
    decoding = decoding(kind, padding)
    prompts = [PROMPTS["short"], tokens(300), [5], tokens(20, 50)]
    there, prompt_of = [], {}
    for act in script:
        if act == "J":
            prompt = prompts[len(prompt_of) % len(prompts)]
            there += decoding.join(prompt)
            prompt_of[there[-1]] = prompt
        else:
            decoding.decoder.leave([there.pop(0)])
        decoding.go(3)

    for row, prompt in prompt_of.items():
        assert greedy_along(decoding.network, prompt, decoding.output_tokens(row)) == decoding.output_tokens(row)


@pytest.mark.parametrize("kind", BATCHABLE)
@pytest.mark.parametrize("leaves", range(3))
def test_whoever_leaves_a_batch_disturbs_nobody(decoding, kind, leaves):
    decoding = decoding(kind)
    rows = decoding.join(*(PROMPTS[name] for name in ("short", "longest", "one token")))
    decoding.go(4)

    decoding.decoder.leave([rows[leaves]])
    decoding.go(2 * WINDOW)

    for at, row in enumerate(rows):
        prompt, said = list(row.prompt), decoding.output_tokens(row)
        assert len(said) == (4 if at == leaves else 4 + 2 * WINDOW)
        assert greedy_along(decoding.network, prompt, said) == said


@pytest.mark.parametrize("kind", BATCHABLE)
def test_several_may_join_a_batch_at_once(decoding, kind):
    decoding = decoding(kind)
    rows = decoding.join(PROMPTS["short"], PROMPTS["longest"])
    decoding.go(2 * WINDOW)

    rows += decoding.join(PROMPTS["one token"], PROMPTS["longer than the window"], PROMPTS["longest"])
    decoding.go(2 * WINDOW)

    for row in rows:
        said = decoding.output_tokens(row)
        assert greedy_along(decoding.network, list(row.prompt), said) == said


def test_a_sequence_may_leave_before_its_first_token(decoding):
    decoding = decoding()
    first, second = decoding.join(PROMPTS["short"], PROMPTS["longest"])

    decoding.decoder.leave([first])
    decoding.go(4)

    assert [] == decoding.output_tokens(first)
    assert greedy(decoding.network, PROMPTS["longest"], 4) == decoding.output_tokens(second)


def test_those_who_go_on_from_one_prompt_do_not_share_what_follows(decoding):
    decoding = decoding()
    cache, logits = prefilled(decoding.network, PROMPTS["longest"])
    rows = [SamplingState(HOT, number=number) for number in range(3)]
    decoding.got = {row: [] for row in rows}

    decoding.decoder.join([Entrant(row, cache, 300, logits) for row in rows])
    decoding.go(10)

    for number, row in enumerate(rows):
        alone = Decoding(decoding.network._network)
        other = SamplingState(HOT, number=number)
        alone.join_rows({other: PROMPTS["longest"]})
        alone.go(10)
        assert alone.output_tokens(other) == decoding.output_tokens(row)
    assert len({tuple(decoding.output_tokens(row)) for row in rows}) == 3


def test_when_all_have_left_it_begins_anew(decoding):
    decoding = decoding()
    decoding.decoder.leave(decoding.join(PROMPTS["short"], [5]))
    decoding.go(1)
    assert 0 == len(decoding.decoder)

    (row,) = decoding.join(PROMPTS["longest"])
    decoding.go(4)

    assert greedy(decoding.network, PROMPTS["longest"], 4) == decoding.output_tokens(row)


def test_whoever_is_not_there_may_leave(decoding):
    decoding = decoding()
    (row,) = decoding.join(PROMPTS["short"])

    decoding.decoder.leave([SamplingState(GREEDY)])
    decoding.go(3)

    assert greedy(decoding.network, PROMPTS["short"], 3) == decoding.output_tokens(row)


def test_a_decoder_without_sequences_has_nothing_to_do(decoding):
    assert [] == decoding().decoder.step()


# Lanes


@pytest.mark.parametrize(
    ("padding", "lanes"), [(10**6, [[100, 110, 300]]), (10, [[100, 110], [300]]), (9, [[100], [110], [300]])]
)
def test_who_would_cost_too_much_padding_has_a_lane_of_his_own(decoding, padding, lanes):
    decoding = decoding("llama", padding)
    decoding.join(tokens(100), tokens(110), tokens(300))
    assert lanes == decoding.decoder.lanes

    decoding.network.shapes.clear()
    decoding.go(3)

    assert [(len(lane), 1) for lane in lanes] * 3 == decoding.network.shapes
    assert [[length + 3 for length in lane] for lane in lanes] == decoding.decoder.lanes


def test_lanes_whose_padding_has_become_cheap_are_put_together(decoding):
    decoding = decoding("llama", 40)
    rows = [row for _ in range(3) for row in decoding.join(tokens(100))] + decoding.join(tokens(120))
    decoding.go(2)
    assert [[102] * 3, [122]] == decoding.decoder.lanes

    decoding.decoder.leave(rows[:1])
    decoding.go(10)

    assert [[112, 112, 132]] == decoding.decoder.lanes
    for row in rows[1:]:
        assert greedy(decoding.network, row.prompt, 12) == decoding.output_tokens(row)


def test_caches_that_cannot_be_merged_never_share_a_lane(decoding):
    decoding = decoding("llama4")

    rows = decoding.join(PROMPTS["short"], PROMPTS["the same as another"])
    decoding.go(3)

    assert [[6], [6]] == decoding.decoder.lanes
    assert [greedy(decoding.network, PROMPTS["short"], 3)] * 2 == [decoding.output_tokens(row) for row in rows]


@pytest.mark.parametrize("kind", BATCHABLE)
@pytest.mark.parametrize("others", [0, 1, 2])
def test_those_whose_prompts_were_processed_together_join_together(decoding, kind, others):
    decoding = decoding(kind)
    before = decoding.join(*[tokens(40, 77)] * others) if others else []
    decoding.go(2 * WINDOW)
    prompts = [tokens(30), tokens(12, 500), tokens(30, 900)]
    found = [prefilled(decoding.network, prompt) for prompt in prompts]
    rows = [SamplingState(GREEDY, prompt=prompt) for prompt in prompts]
    decoding.got |= {row: [] for row in rows}

    cache, logits = (
        decoding.layout.merge([cache for cache, _ in found]),
        mx.concatenate([logits for _, logits in found]),
    )
    decoding.decoder.join([], [Group(rows, cache, [30, 12, 30], logits)])
    decoding.go(2 * WINDOW)

    for row in [*before, *rows]:
        assert greedy_along(decoding.network, list(row.prompt), decoding.output_tokens(row)) == decoding.output_tokens(
            row
        )


# Each by its own rules


def mixed():
    """Rows of all sorts, and the prompts they go on from."""
    return {
        SamplingState(GREEDY): PROMPTS["short"],
        SamplingState(HOT, scored=3): PROMPTS["longest"],
        SamplingState(GREEDY, constraint=Odd()): PROMPTS["one token"],
        SamplingState(HOT, constraint=Odd(), scored=0): PROMPTS["short"],
        SamplingState(SamplingParams(temperature=0, frequency_penalty=1.0), scored=20): PROMPTS["longest"],
        SamplingState(SamplingParams(temperature=1.0, logit_bias=[(3, 2.0)], min_p=0.01), entropy=5): PROMPTS[
            "one token"
        ],
    }


def gist(decoding, row):
    """Tokens, and scores rounded so far that the company does not matter."""
    return [
        (
            token.token,
            token.score and (round(token.score.logprob, 3), [id_ for id_, _ in token.score.top]),
        )
        for token in decoding.got[row]
    ]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [2, 0, 4, 1, 5, 3]])
def test_each_gets_what_it_asked_for_whoever_else_is_there(decoding, order):
    network = decoding("llama").network._network
    expected = []
    for row, prompt in mixed().items():
        alone = Decoding(network)
        alone.join_rows({row: prompt})
        alone.go(12)
        expected.append(gist(alone, row))
    together, rows = Decoding(network), list(mixed().items())

    for at in order:  # one after the other: the first has six steps more than the last
        together.join_rows(dict(rows[at : at + 1]))
        together.go(1)
    together.go(12)

    for at, (row, _) in enumerate(rows):
        assert expected[at] == gist(together, row)[:12], at


@pytest.mark.parametrize("leaves", range(6))
def test_scores_and_constraints_stay_with_their_sequences(decoding, leaves):
    decoding = decoding()
    rows = list(mixed().items())
    decoding.join_rows(dict(rows))
    decoding.go(3)

    decoding.decoder.leave([rows[leaves][0]])
    decoding.go(5)

    for at, (row, prompt) in enumerate(rows):
        said = decoding.output_tokens(row)
        scores = [token.score for token in decoding.got[row]]
        assert len(said) == (3 if at == leaves else 8)
        if row.constraint is not None:
            assert [1, 0, 1, 0, 1, 0, 1, 0][: len(said)] == [token % 2 for token in said]
        if row.scored is None:
            assert [None] * len(said) == scores
        else:
            assert logprobs_along(decoding.network, prompt, said) == pytest.approx(
                [score.logprob for score in scores], abs=1e-3
            )
            assert {row.scored} == {len(score.top) for score in scores}


def test_a_constraint_hears_each_token_once(decoding):
    decoding = decoding()
    rows = decoding.join(PROMPTS["short"], constraint=Odd())
    rows += decoding.join(PROMPTS["longest"])
    decoding.go(5)

    assert decoding.output_tokens(rows[0]) == rows[0].constraint.heard


@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_constraint_that_fails_is_told_and_costs_nobody_else(decoding, neighbours):
    decoding = decoding()
    others = decoding.join(*[PROMPTS["longest"]] * neighbours) if neighbours else []
    (row,) = decoding.join(PROMPTS["short"], constraint=Odd(most=2))

    decoding.go(2)
    assert {} == decoding.decoder.take_failed()
    decoding.go(1)

    assert {row: "enough"} == decoding.decoder.take_failed()
    assert {} == decoding.decoder.take_failed()
    decoding.decoder.leave([row])
    decoding.go(3)
    for other in others:
        assert greedy(decoding.network, PROMPTS["longest"], 6) == decoding.output_tokens(other)


def test_a_constraint_that_cannot_even_begin_is_told(decoding):
    class Unable(Odd):
        def fill(self, row):
            raise ConstraintFailed("unable")

    decoding = decoding()

    (row,) = decoding.join(PROMPTS["short"], constraint=Unable())

    assert {row: "unable"} == decoding.decoder.take_failed()


# What is kept


@pytest.mark.parametrize("kind", BATCHABLE)
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_sequence_can_be_gone_on_from_where_it_is(decoding, kind, neighbours):
    decoding = decoding(kind)
    if neighbours:
        decoding.join(tokens(50), [5])
    (row,) = decoding.join(PROMPTS["longest"])
    decoding.go(2 * WINDOW)

    whole = [*PROMPTS["longest"], *decoding.output_tokens(row)]
    kept = decoding.decoder.kept(row)
    again = restored(decoding, kept, len(whole))
    decoding.go(3)  # which is not to touch what was kept

    _, expected = prefilled(decoding.network, [*whole, 5])
    assert mx.allclose(expected, decoding.network(mx.array([[5]]), cache=again)[:, -1], atol=1e-4).item()


def restored(decoding, kept, length):
    layout = decoding.layout
    parts = [kept.pack(0, 200), kept.pack(200, length)]
    return caches.restore(layout, decoding.network, parts, length, kept.states() if layout.has_states else None)
