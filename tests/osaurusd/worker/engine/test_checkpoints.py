"""Checkpoints: states of layers that cannot be sliced, in the prefix cache."""

import pytest

from osaurusd.worker.engine.prefix_cache import PrefixCache
from tests.osaurusd.worker.engine.test_prefix_cache import insert, join, restored, tokens


class State:
    def __init__(self, name, nbytes=100):
        self.name = name
        self.nbytes = nbytes


@pytest.fixture
def cache():
    return PrefixCache(2**30, has_states=True)


def insert_checkpoint(cache, sequence, name, nbytes=100):
    cache.insert_checkpoint(sequence, [State(name, nbytes)])


def find_checkpoint(cache, prompt, limit=None):
    """Return the length of a match and the name of its checkpoint."""
    match = cache.find(prompt, len(prompt) if limit is None else limit)
    return match.length, None if match.states is None else match.states[0].name


@pytest.mark.parametrize(
    ("prompt", "limit", "expected"),
    [
        (tokens(700), 699, (600, "at 600")),
        (tokens(700), 600, (600, "at 600")),
        (tokens(700), 599, (300, "at 300")),
        (tokens(600), 599, (300, "at 300")),
        (tokens(299), 298, (100, "at 100")),
        (join(tokens(450), tokens(50, 9000)), 499, (300, "at 300")),
        (tokens(100), 99, (0, None)),
        (tokens(90), 89, (0, None)),
    ],
)
def test_a_prompt_resumes_at_its_last_checkpoint(cache, prompt, limit, expected):
    insert(cache, tokens(700))
    for offset in (100, 300, 600):
        insert_checkpoint(cache, tokens(offset), f"at {offset}")

    assert expected == find_checkpoint(cache, prompt, limit)
    match = cache.find(prompt, limit)
    assert list(range(match.length)) == restored(match)
    assert match.shared == (450 if len(prompt) == 500 else len(prompt))


def test_a_checkpoint_survives_when_its_block_is_replaced(cache):
    insert(cache, tokens(100))
    insert_checkpoint(cache, tokens(100), "at 100")
    insert(cache, tokens(200))

    assert (100, "at 100") == find_checkpoint(cache, tokens(100))
    assert (100, "at 100") == find_checkpoint(cache, tokens(150), 149)


def test_a_checkpoint_is_found_in_a_sibling_of_the_best_matching_block(cache):
    """The checkpoint is in the block of the first sequence, but the prompt is more similar to the second."""
    first, second, prompt = (join(tokens(100), tokens(50, start)) for start in (1000, 2000, 2000))
    prompt[-1] = 9
    insert(cache, first)
    insert_checkpoint(cache, first[:100], "at 100")
    insert(cache, second)

    assert (100, "at 100") == find_checkpoint(cache, prompt, 149)
    assert prompt[:100].tolist() == restored(cache.find(prompt, 149))


@pytest.mark.parametrize("prompt", [tokens(10), tokens(701), tokens(300, 5)])
def test_a_prompt_does_not_resume_without_a_checkpoint(cache, prompt):
    insert(cache, tokens(700))
    insert_checkpoint(cache, tokens(300), "at 300")

    assert cache.find(prompt, len(prompt)).length < len(prompt)


def test_a_checkpoint_of_tokens_that_are_not_stored_is_dropped(cache):
    insert(cache, tokens(300))
    before = cache.nbytes

    insert_checkpoint(cache, tokens(301), "too long")
    insert_checkpoint(cache, tokens(100, 50), "different")

    assert before == cache.nbytes


def test_a_position_has_one_checkpoint(cache):
    insert(cache, tokens(300))
    insert_checkpoint(cache, tokens(300), "first")
    before = cache.nbytes

    insert_checkpoint(cache, tokens(300), "second")

    assert before == cache.nbytes
    assert (300, "first") == find_checkpoint(cache, tokens(301), 300)


def test_checkpoints_count_and_are_evicted_with_their_blocks(cache):
    insert(cache, tokens(300))
    before = cache.nbytes

    insert_checkpoint(cache, tokens(300), "large", 10**6)

    assert cache.nbytes >= before + 10**6
    cache.clear()
    assert cache.nbytes == 0


def test_an_unused_checkpoint_is_evicted_before_used_blocks(cache):
    insert(cache, tokens(300))
    insert_checkpoint(cache, tokens(300), "old", 10**6)
    insert_checkpoint(cache, tokens(200), "new", 10**6)

    cache.set_cap(cache.nbytes - 1)

    assert (200, "new") == find_checkpoint(cache, tokens(301), 300)
    assert 300 == cache.find(tokens(301), 300).shared
