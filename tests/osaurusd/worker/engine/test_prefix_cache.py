import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from osaurusd.worker.engine.prefix_cache import BLOCK_TOKENS, PrefixCache

BYTES_PER_TOKEN = 4 + 4  # the token id, and what the layers store for it


def tokens(count, start=0):
    return np.arange(start, start + count, dtype=np.int32)


def join(*parts):
    return np.concatenate(parts)


def insert(cache, sequence, reads=None):
    """Insert a sequence whose layers store one number per token; append the ranges that are read to `reads`."""

    def read(start, end):
        if reads is not None:
            reads.append((start, end))
        return [sequence[start:end].astype(np.float32)]

    cache.insert(sequence, read)


def restored(match):
    """Return the numbers that a match restores."""
    return np.concatenate([np.array([]), *(block[0] for block in match.blocks)])[: match.length].tolist()


@pytest.fixture
def cache():
    return PrefixCache(2**30, has_states=False)


# Lookup


@pytest.mark.parametrize("stored", [1, 100, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 700])
@pytest.mark.parametrize("common", [0, 1, 99, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 512, 699])
def test_the_longest_common_prefix_is_found(cache, stored, common):
    common = min(common, stored)
    insert(cache, tokens(stored))
    prompt = join(tokens(common), tokens(300, 10_000))

    match = cache.find(prompt, len(prompt) - 1)

    assert (common, common) == (match.length, match.shared)
    assert list(range(common)) == restored(match)


def test_the_longer_of_two_common_prefixes_is_found(cache):
    insert(cache, join(tokens(300), tokens(50, 5000)))
    insert(cache, join(tokens(400), tokens(50, 6000)))

    assert 400 == cache.find(join(tokens(400), tokens(9, 7000)), 408).length
    assert 320 == cache.find(join(tokens(300), tokens(20, 5000)), 320).length


@pytest.mark.parametrize("limit", [0, 1, 255, 256, 257, 699])
def test_a_match_is_no_longer_than_the_limit(cache, limit):
    insert(cache, tokens(700))

    match = cache.find(tokens(700), limit)

    assert (limit, 700) == (match.length, match.shared)
    assert list(range(limit)) == restored(match)
    assert len(match.blocks) == -(-limit // BLOCK_TOKENS)


def test_nothing_is_found_in_an_empty_cache(cache):
    match = cache.find(tokens(700), 699)

    assert (0, 0, [], None) == (match.length, match.shared, match.blocks, match.states)


def test_a_disabled_cache_stores_nothing():
    cache = PrefixCache(0, has_states=False)
    reads = []

    insert(cache, tokens(700), reads)

    assert not cache.enabled
    assert (0, [], 0) == (cache.nbytes, reads, cache.find(tokens(700), 699).length)


# Insertion


def test_a_sequence_is_copied_in_blocks(cache):
    reads = []

    insert(cache, tokens(700), reads)

    assert [(0, 256), (256, 512), (512, 700)] == reads


def test_only_missing_blocks_are_copied(cache):
    insert(cache, tokens(700))
    reads = []

    insert(cache, tokens(700), reads)
    insert(cache, tokens(600), reads)
    insert(cache, join(tokens(512), tokens(100, 9000)), reads)

    assert [(512, 612)] == reads


def test_a_partial_block_is_replaced_by_a_longer_one(cache):
    for count in (10, 100, 300):
        insert(cache, tokens(count))

    assert size_of(300) == cache.nbytes
    assert 300 == cache.find(tokens(301), 300).length


def test_a_partial_block_with_different_tokens_is_not_replaced(cache):
    insert(cache, tokens(10))
    insert(cache, join(tokens(5), tokens(10, 100)))

    insert(cache, tokens(20))

    assert 15 == cache.find(join(tokens(5), tokens(10, 100)), 15).length
    assert 20 == cache.find(tokens(21), 20).length


def test_lookups_and_repeated_insertions_do_not_change_the_size(cache):
    insert(cache, tokens(600))
    reads = []
    before = cache.nbytes

    for _ in range(3):
        cache.find(tokens(500), 499)
        insert(cache, tokens(500), reads)

    assert (before, []) == (cache.nbytes, reads)


# Eviction


def size_of(count):
    """Return the size of a cache with one sequence of `count` tokens."""
    cache = PrefixCache(2**30, has_states=False)
    insert(cache, tokens(count))
    return cache.nbytes


def test_the_size_includes_tokens_arrays_and_bookkeeping():
    per_block = size_of(1) - BYTES_PER_TOKEN

    assert per_block + 200 * BYTES_PER_TOKEN == size_of(200)
    assert 3 * per_block + 700 * BYTES_PER_TOKEN == size_of(700)


def test_the_limit_is_exact():
    exact, smaller = (PrefixCache(size_of(700) - missing, has_states=False) for missing in (0, 1))

    for cache in (exact, smaller):
        insert(cache, tokens(700))

    assert (size_of(700), 700) == (exact.nbytes, exact.find(tokens(701), 700).length)
    assert (size_of(512), 512) == (smaller.nbytes, smaller.find(tokens(701), 700).length)


def test_the_end_of_a_sequence_is_evicted_before_its_beginning():
    cache = PrefixCache(size_of(512), has_states=False)

    insert(cache, tokens(2000))

    assert 512 == cache.find(tokens(2000), 2000).length


def test_the_least_recently_used_block_is_evicted_first():
    cache = PrefixCache(size_of(256) * 3, has_states=False)
    for start in (0, 1000, 2000):
        insert(cache, tokens(256, start))
    cache.find(tokens(256), 255)

    insert(cache, tokens(256, 3000))

    assert [0, 2000, 3000] == [start for start in (0, 1000, 2000, 3000) if cache.find(tokens(256, start), 256).length]


def test_a_common_prefix_in_use_is_not_evicted():
    common = tokens(512)
    cache = PrefixCache(size_of(512) + 2 * size_of(256), has_states=False)
    sequences = {start: join(common, tokens(256, start)) for start in range(1000, 8000, 1000)}

    for sequence in sequences.values():
        insert(cache, sequence)

    assert 512 == cache.find(common, 512).length
    assert [6000, 7000] == [start for start, sequence in sequences.items() if cache.find(sequence, 768).length > 512]


def test_a_lower_cap_evicts_no_more_than_needed(cache):
    insert(cache, tokens(256 * 4))
    block = cache.nbytes // 4

    cache.set_cap(cache.nbytes - block - 1)

    assert 2 * block == cache.nbytes
    assert 512 == cache.find(tokens(1024), 1024).length


def test_a_cap_can_be_raised_again(cache):
    insert(cache, tokens(700))
    before = cache.nbytes

    cache.set_cap(before)
    insert(cache, tokens(700, 5000))
    capped = cache.nbytes
    cache.set_cap(2**60)
    insert(cache, tokens(700, 5000))
    insert(cache, tokens(700))

    assert capped <= before < cache.nbytes


def test_a_cache_can_be_resized_disabled_and_enabled_again(cache):
    insert(cache, tokens(512))
    insert(cache, tokens(512, 1000))
    before = cache.nbytes

    cache.resize(before // 2)
    assert 0 < cache.nbytes <= before // 2
    cache.resize(0)
    insert(cache, tokens(512))
    assert (0, False) == (cache.nbytes, cache.enabled)
    cache.resize(before)
    insert(cache, tokens(512))
    assert cache.nbytes == size_of(512)


def test_a_cleared_cache_is_empty_and_usable(cache):
    insert(cache, tokens(700))

    cache.clear()

    assert (0, 0) == (cache.nbytes, cache.find(tokens(700), 700).length)
    insert(cache, tokens(700))
    assert 700 == cache.find(tokens(701), 700).length


# Invariants


@pytest.mark.parametrize("has_states", [False, True])
def test_every_entry_is_reachable_and_counted(has_states):
    """Random sequences with common prefixes, in a cache that is too small for all of them."""
    rng = random.Random(1)
    cache = PrefixCache(30_000, has_states=has_states)
    for _ in range(400):
        sequence = np.array([rng.randrange(2) * at for at in range(rng.choice([3, 250, 256, 600, 900]))], np.int32)
        sequence[rng.randrange(len(sequence)) :] += rng.randrange(3)
        insert(cache, sequence)
        if has_states:
            cache.insert_checkpoint(
                sequence[: rng.randrange(1, len(sequence) + 1)], [np.zeros(rng.choice([1, 5000]), np.int8)]
            )
        match = cache.find(sequence, len(sequence) - 1)
        assert sequence[: match.length].tolist() == restored(match)

        entries = list(reachable(cache._root))
        assert Counter(entries) == Counter(list(cache._lru))
        assert sum(entry.nbytes for entry in entries) == cache.nbytes <= 30_000


def reachable(block):
    yield from block.checkpoints.values()
    for child in block.children.values():
        assert child.parent is block
        yield child
        yield from reachable(child)


def test_the_bookkeeping_takes_few_bytes_per_token():
    count = 200_000
    cache = PrefixCache(2**40, has_states=False)
    sequence = tokens(count)
    baseline = traced_bytes(lambda: None)

    used = traced_bytes(lambda: cache.insert(sequence, lambda start, end: [])) - baseline

    assert cache.find(sequence, count).length == count
    assert used / count < 12
    assert used <= cache.nbytes


def traced_bytes(work):
    """Return how many bytes Python has allocated for `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
