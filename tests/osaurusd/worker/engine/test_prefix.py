import random
import time
import tracemalloc
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.worker.engine.prefix import BLOCK_TOKENS, PrefixCache

ROW_BYTES = 4


def text(count, start=0):
    return np.arange(start, start + count, dtype=np.int32)


def joined(*parts):
    return np.concatenate(parts)


def rows(tokens):
    """What the layers of a model might hold: one number a token."""
    return mx.array(tokens).astype(mx.float32)[None, None, :, None]


def keep(cache, tokens, reads=None):
    """Insert, and note in `reads` which ranges were copied."""

    def read(start, end):
        if reads is not None:
            reads.append((start, end))
        return [rows(tokens[start:end])]

    cache.insert(tokens, read)


def taken(match):
    """The numbers that a match gives, as far as it may be taken over."""
    if not match.blocks:
        return []
    return mx.concatenate([block[0] for block in match.blocks], axis=2)[0, 0, : match.length, 0].tolist()


class Leaf:
    """What a layer that cannot be cut may hold."""

    def __init__(self, name, nbytes=100):
        self.name = name
        self.nbytes = nbytes


@pytest.fixture
def cache():
    return PrefixCache(2**30, has_states=False)


@pytest.fixture
def stateful():
    return PrefixCache(2**30, has_states=True)


# What is found


@pytest.mark.parametrize("kept", [1, 100, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 700])
@pytest.mark.parametrize("common", [0, 1, 99, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 512, 699])
def test_the_longest_beginning_is_found(cache, kept, common):
    common = min(common, kept)
    keep(cache, text(kept))
    prompt = joined(text(common), text(300, 10_000))

    match = cache.find(prompt, len(prompt) - 1)

    assert (common, common) == (match.length, match.shared)
    assert list(range(common)) == taken(match)


def test_the_longer_of_two_is_found(cache):
    keep(cache, joined(text(300), text(50, 5000)))
    keep(cache, joined(text(400), text(50, 6000)))

    assert 400 == cache.find(joined(text(400), text(9, 7000)), 408).length
    assert 320 == cache.find(joined(text(300), text(20, 5000)), 319 + 1).length


@pytest.mark.parametrize("limit", [0, 1, 255, 256, 257, 699])
def test_no_more_is_found_than_asked_for(cache, limit):
    keep(cache, text(700))

    match = cache.find(text(700), limit)

    assert (limit, 700) == (match.length, match.shared)
    assert list(range(limit)) == taken(match)
    assert len(match.blocks) == -(-limit // BLOCK_TOKENS)


def test_nothing_is_found_in_an_empty_index(cache):
    match = cache.find(text(700), 699)

    assert (0, 0, [], None) == (match.length, match.shared, match.blocks, match.states)


def test_an_index_without_room_keeps_nothing():
    cache = PrefixCache(0, has_states=False)
    reads = []

    keep(cache, text(700), reads)

    assert not cache.enabled
    assert (0, [], 0) == (cache.nbytes, reads, cache.find(text(700), 699).length)


# What is copied


def test_a_sequence_is_copied_in_blocks(cache):
    reads = []

    keep(cache, text(700), reads)

    assert [(0, 256), (256, 512), (512, 700)] == reads


def test_only_what_is_not_there_is_copied(cache):
    keep(cache, text(700))
    reads = []

    keep(cache, text(700), reads)
    keep(cache, text(600), reads)
    keep(cache, joined(text(512), text(100, 9000)), reads)

    assert [(512, 612)] == reads


def test_a_block_that_was_not_full_gives_way_to_one_that_begins_with_it(cache):
    for count in (10, 100, 300):
        keep(cache, text(count))
    alone = PrefixCache(2**30, has_states=False)
    keep(alone, text(300))

    assert alone.nbytes == cache.nbytes
    assert 300 == cache.find(text(301), 300).length


def test_of_two_blocks_that_are_not_full_only_the_like_one_gives_way(cache):
    keep(cache, text(10))
    keep(cache, joined(text(5), text(10, 100)))

    keep(cache, text(20))

    assert 15 == cache.find(joined(text(5), text(10, 100)), 15).length
    assert 20 == cache.find(text(21), 20).length


def test_what_is_kept_does_not_change_when_it_is_found_again(cache):
    keep(cache, text(600))
    reads = []
    before = cache.nbytes

    for _ in range(3):
        cache.find(text(500), 499)
        keep(cache, text(500), reads)

    assert (before, []) == (cache.nbytes, reads)


# What has to go


def size_of(count):
    """Bytes that a sequence of `count` tokens takes in an index of its own."""
    cache = PrefixCache(2**30, has_states=False)
    keep(cache, text(count))
    return cache.nbytes


def test_all_is_counted():
    bare = size_of(1) - ROW_BYTES - 4

    assert bare + 200 * (ROW_BYTES + 4) == size_of(200)
    assert 3 * bare + 700 * (ROW_BYTES + 4) == size_of(700)


def test_the_cap_is_kept_to_the_byte():
    room = size_of(700)
    exact, less = (PrefixCache(most, has_states=False) for most in (room, room - 1))

    for cache in (exact, less):
        keep(cache, text(700))

    assert (room, 700) == (exact.nbytes, exact.find(text(701), 700).length)
    assert (size_of(512), 512) == (less.nbytes, less.find(text(701), 700).length)


def test_the_end_of_a_sequence_goes_before_its_beginning():
    cache = PrefixCache(size_of(512), has_states=False)

    keep(cache, text(2000))

    assert 512 == cache.find(text(2000), 2000).length


def test_what_was_used_least_recently_goes_first():
    cache = PrefixCache(size_of(256) * 3, has_states=False)
    for start in (0, 1000, 2000):
        keep(cache, text(256, start))
    cache.find(text(256), 255)

    keep(cache, text(256, 3000))

    kept = [start for start in (0, 1000, 2000, 3000) if cache.find(text(256, start), 256).length]
    assert [0, 2000, 3000] == kept


def test_a_beginning_that_is_used_survives_its_ends():
    shared = text(512)
    cache = PrefixCache(size_of(512) + 2 * size_of(256), has_states=False)

    for start in range(1000, 8000, 1000):
        keep(cache, joined(shared, text(256, start)))

    assert 512 == cache.find(shared, 512).length
    ends = [
        start for start in range(1000, 8000, 1000) if cache.find(joined(shared, text(256, start)), 768).length > 512
    ]
    assert [6000, 7000] == ends


def test_a_lower_cap_takes_what_is_over_it_and_no_block_more(cache):
    keep(cache, text(256 * 4))
    block = cache.nbytes // 4

    cache.cap(cache.nbytes - block - 1)

    assert 2 * block == cache.nbytes
    assert 512 == cache.find(text(1024), 1024).length


def test_a_cap_that_is_not_reached_takes_nothing_and_lower_ones_are_not_for_ever(cache):
    keep(cache, text(700))
    before = cache.nbytes

    cache.cap(before)
    keep(cache, text(700, 5000))
    capped = cache.nbytes
    cache.cap(2**60)
    keep(cache, text(700, 5000))
    keep(cache, text(700))

    assert capped <= before < cache.nbytes


def test_clearing_leaves_nothing(cache):
    keep(cache, text(700))

    cache.clear()

    assert (0, 0) == (cache.nbytes, cache.find(text(700), 700).length)
    keep(cache, text(700))
    assert 700 == cache.find(text(701), 700).length


# Layers that cannot be cut


def keep_state(cache, tokens, name, nbytes=100):
    cache.insert_state(tokens, [Leaf(name, nbytes)])


def name_of(match):
    return None if match.states is None else match.states[0].name


@pytest.mark.parametrize(
    ("prompt", "limit", "expected"),
    [
        (text(700), 699, (600, "at 600")),
        (text(700), 600, (600, "at 600")),
        (text(700), 599, (300, "at 300")),
        (text(600), 599, (300, "at 300")),
        (text(299), 298, (100, "at 100")),
        (joined(text(450), text(50, 9000)), 499, (300, "at 300")),
        (text(100), 99, (0, None)),
        (text(90), 89, (0, None)),
    ],
)
def test_a_sequence_goes_on_from_the_last_state_it_has_in_common(stateful, prompt, limit, expected):
    keep(stateful, text(700))
    for offset in (100, 300, 600):
        keep_state(stateful, text(offset), f"at {offset}")

    match = stateful.find(prompt, limit)

    assert expected == (match.length, name_of(match))
    assert list(range(match.length)) == taken(match)
    assert match.shared == (450 if len(prompt) == 500 else len(prompt))


def test_a_state_stays_when_its_block_gives_way(stateful):
    keep(stateful, text(100))
    keep_state(stateful, text(100), "at 100")
    keep(stateful, text(200))

    assert len(text(100)) == stateful.find(text(100), 100).length
    assert (100, "at 100") == ((match := stateful.find(text(150), 149)).length, name_of(match))


def test_a_state_is_found_by_whoever_shares_what_is_before_it(stateful):
    """The state lies in the block of the first; the second has its beginning in a block of its own; the third is more
    like the second."""
    first, second, third = (joined(text(100), text(50, start)) for start in (1000, 2000, 2000))
    third[-1] = 9
    keep(stateful, first)
    keep_state(stateful, first[:100], "at 100")
    keep(stateful, second)

    match = stateful.find(third, 149)

    assert (100, "at 100") == (match.length, name_of(match))
    assert third[:100].tolist() == taken(match)


@pytest.mark.parametrize("tokens", [text(10), text(701), text(300, 5)])
def test_there_is_no_state_where_none_was_kept(stateful, tokens):
    keep(stateful, text(700))
    keep_state(stateful, text(300), "at 300")

    assert stateful.find(tokens, len(tokens)).length < len(tokens)


def test_a_state_of_what_is_not_there_is_not_kept(stateful):
    keep(stateful, text(300))
    before = stateful.nbytes

    keep_state(stateful, text(301), "too far")
    keep_state(stateful, text(100, 50), "elsewhere")

    assert before == stateful.nbytes


def test_a_state_is_kept_once(stateful):
    keep(stateful, text(300))
    keep_state(stateful, text(300), "first")
    before = stateful.nbytes

    keep_state(stateful, text(300), "second")

    assert (before, "first") == (stateful.nbytes, name_of(stateful.find(text(301), 300)))


def test_states_are_counted_and_go_with_their_blocks(stateful):
    keep(stateful, text(300))
    without = stateful.nbytes

    keep_state(stateful, text(300), "large", 10**6)

    assert stateful.nbytes >= without + 10**6
    stateful.clear()
    assert stateful.nbytes == 0


def test_a_state_that_is_not_used_goes_before_blocks_that_are(stateful):
    keep(stateful, text(300))
    keep_state(stateful, text(300), "old", 10**6)
    keep_state(stateful, text(200), "new", 10**6)

    stateful.cap(stateful.nbytes - 1)

    assert (200, "new") == ((match := stateful.find(text(301), 300)).length, name_of(match))
    assert match.shared == 300


# Whatever happens


@pytest.mark.parametrize("has_states", [False, True])
def test_whatever_is_kept_can_be_reached_and_is_counted(has_states):
    """Random sequences that share beginnings, in an index that is always too small for all."""
    chance = random.Random(1)
    cache = PrefixCache(30_000, has_states=has_states)
    for _ in range(400):
        tokens = np.array([chance.randrange(2) * at for at in range(chance.choice([3, 250, 256, 600, 900]))], np.int32)
        tokens[chance.randrange(len(tokens)) :] += chance.randrange(3)
        keep(cache, tokens)
        if has_states:
            keep_state(cache, tokens[: chance.randrange(1, len(tokens) + 1)], "some", chance.choice([1, 5000]))
        match = cache.find(tokens, len(tokens) - 1)
        assert tokens[: match.length].tolist() == taken(match)

        reached = list(reachable(cache._root))
        assert Counter(reached) == Counter(list(cache._order))
        assert sum(entry.nbytes for entry in reached) == cache.nbytes <= 30_000


def reachable(block):
    yield from block.states.values()
    for child in block.children.values():
        assert child.parent is block
        yield child
        yield from reachable(child)


# What it costs


def test_the_bookkeeping_of_a_token_takes_few_bytes():
    count = 200_000
    cache = PrefixCache(2**40, has_states=False)
    tokens = text(count)
    before = traced(lambda: None)

    held = traced(lambda: cache.insert(tokens, lambda start, end: []))

    assert cache.find(tokens, count).length == count
    assert (held - before) / count < 12
    assert held - before <= cache.nbytes, "more is held than is counted"


def traced(work):
    """Bytes that Python holds more after `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_long_sequence_is_found_at_once():
    tokens = text(50_000)
    cache = PrefixCache(2**40, has_states=True)
    cache.insert(tokens, lambda start, end: [])
    for offset in range(1000, 50_001, 1000):
        keep_state(cache, tokens[:offset], f"at {offset}")

    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        match = cache.find(tokens, 49_999)
        seconds.append(time.perf_counter() - begun)

    assert match.length == 49_000
    assert min(seconds) < 0.05
