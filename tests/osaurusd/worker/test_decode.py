import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import greedy_sampler

from osaurusd import ipc
from osaurusd.worker.decode import BatchedDecoder, SerialDecoder, Token, can_batch
from osaurusd.worker.sampling import make_sampler
from tests.osaurusd.worker.networks import BATCHABLE, greedy, prefill

PROMPTS = {
    "one token": [5],
    "short": [7, 8, 9],
    "longer than the window": list(range(20)),
    "the same again and again": [11] * 5,
    "the same as another": [7, 8, 9],
    "longest": list(range(60, 10, -1)),
}


def decode(decoder, uids, count):
    """The first tokens of every sequence."""
    tokens = {uid: [] for uid in uids}
    while any(len(found) < count for found in tokens.values()):
        for token in decoder.step():
            tokens[token.uid].append(token.token)
    return [tokens[uid][:count] for uid in uids]


def join(decoder, network, prompt, sampler=greedy_sampler):
    return decoder.join(prefill(network, prompt), prompt, sampler)


def test_caches_that_can_be_merged_are_told_from_those_that_cannot(network):
    found = {kind: can_batch(make_prompt_cache(network(kind))) for kind in [*BATCHABLE, "chunked attention"]}

    assert {**dict.fromkeys(BATCHABLE, True), "chunked attention": False} == found


@pytest.mark.parametrize("kind", BATCHABLE)
def test_sequences_decoded_together_get_what_each_gets_alone(network, kind):
    network = network(kind)
    decoder = BatchedDecoder(network, [], None)
    uids = [join(decoder, network, prompt) for prompt in PROMPTS.values()]

    found = decode(decoder, uids, 12)

    expected = [greedy(network, prompt, 12) for prompt in PROMPTS.values()]
    assert expected == found
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS) - 1, "the prompts must make a difference"


@pytest.mark.parametrize("kind", [*BATCHABLE, "chunked attention"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_serial_decoder_gets_the_same(network, kind, prompt):
    network = network(kind)
    decoder = SerialDecoder(network, [])
    uid = join(decoder, network, prompt)

    assert [greedy(network, prompt, 12)] == decode(decoder, [uid], 12)


@pytest.mark.parametrize("kind", BATCHABLE)
def test_a_sequence_that_joins_later_disturbs_nobody(network, kind):
    network = network(kind)
    decoder = BatchedDecoder(network, [], None)
    first = join(decoder, network, PROMPTS["short"])
    (begun,) = decode(decoder, [first], 5)
    second = join(decoder, network, PROMPTS["longest"])

    rest, other = decode(decoder, [first, second], 12)

    assert greedy(network, PROMPTS["short"], 17) == begun + rest
    assert greedy(network, PROMPTS["longest"], 12) == other


@pytest.mark.parametrize("kind", BATCHABLE)
@pytest.mark.parametrize("leaves", range(3))
def test_a_sequence_that_is_removed_disturbs_nobody(network, kind, leaves):
    network = network(kind)
    decoder = BatchedDecoder(network, [], None)
    prompts = [PROMPTS[name] for name in ("short", "longest", "one token")]
    uids = [join(decoder, network, prompt) for prompt in prompts]
    begun = decode(decoder, uids, 4)
    decoder.remove(uids.pop(leaves))
    begun.pop(leaves)
    prompts.pop(leaves)

    rest = decode(decoder, uids, 6)

    assert [greedy(network, prompt, 10) for prompt in prompts] == [a + b for a, b in zip(begun, rest, strict=True)]
    assert set(uids) == {token.uid for token in decoder.step()}


def test_a_sequence_can_be_removed_before_its_first_token(network):
    decoder = BatchedDecoder(network(), [], None)
    first = join(decoder, network(), PROMPTS["short"])
    second = join(decoder, network(), PROMPTS["one token"])

    decoder.remove(first)

    assert [greedy(network(), PROMPTS["one token"], 4)] == decode(decoder, [second], 4)


@pytest.mark.parametrize("make", [lambda network, ends: BatchedDecoder(network, ends, None), SerialDecoder])
def test_an_end_token_is_marked_and_ends_its_sequence(network, make):
    tokens = greedy(network(), PROMPTS["longest"], 12)
    end = tokens[4]
    expected = tokens[: tokens.index(end) + 1]
    decoder = make(network(), [end, 96])
    uid = join(decoder, network(), PROMPTS["longest"])

    found = []
    while not (found and found[-1].end):
        found += decoder.step()

    assert [Token(uid, token, token == end) for token in expected] == found
    assert decoder.step() == []


@pytest.mark.parametrize("make", [lambda network, ends: BatchedDecoder(network, ends, None), SerialDecoder])
def test_a_decoder_without_sequences_has_nothing_to_do(network, make):
    assert make(network(), []).step() == []


def test_each_sequence_has_its_own_sampler(network):
    warm = ipc.Sampling(temperature=1.5, top_p=1, seed=1)
    serial = SerialDecoder(network(), [])
    uid = join(serial, network(), PROMPTS["short"], make_sampler(warm))
    (alone,) = decode(serial, [uid], 10)
    decoder = BatchedDecoder(network(), [], None)
    uids = [
        join(decoder, network(), PROMPTS["short"]),
        join(decoder, network(), PROMPTS["short"], make_sampler(warm)),
        join(decoder, network(), PROMPTS["longest"], make_sampler(ipc.Sampling(temperature=1, top_p=1))),
    ]

    cold, seeded, _ = decode(decoder, uids, 10)

    assert greedy(network(), PROMPTS["short"], 10) == cold
    assert alone == seeded
    assert cold != seeded


def test_a_serial_decoder_takes_one_sequence_at_a_time(network):
    decoder = SerialDecoder(network(), [])
    first = join(decoder, network(), PROMPTS["short"])
    with pytest.raises(RuntimeError, match="one sequence at a time"):
        join(decoder, network(), PROMPTS["longest"])

    decoder.remove(first)
    second = join(decoder, network(), PROMPTS["longest"])

    assert first != second
    assert [greedy(network(), PROMPTS["longest"], 4)] == decode(decoder, [second], 4)


def test_removing_a_sequence_that_has_left_a_serial_decoder_is_harmless(network):
    decoder = SerialDecoder(network(), [])
    first = join(decoder, network(), PROMPTS["short"])
    decoder.remove(first)
    second = join(decoder, network(), PROMPTS["short"])

    decoder.remove(first)

    assert [second] == [token.uid for token in decoder.step()]


def test_a_decoder_computes_on_the_threads_own_stream(network):
    decoder = BatchedDecoder(network(), [], None)

    assert mx.default_stream(mx.default_device()) == decoder._generator.stream
