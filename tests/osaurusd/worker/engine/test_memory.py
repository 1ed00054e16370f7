"""Memory estimates. By default a token takes 10 bytes in the cache, and in a pass 3, plus 2 per token of context."""

import pytest

from osaurusd.worker.engine.chunk_sizer import MAX_TOKENS, MIN_TOKENS, ChunkSizer
from osaurusd.worker.engine.kv_cache import GROWTH_TOKENS, CacheLayout, Window
from osaurusd.worker.engine.memory import ORDINARY_TOKENS, MemoryBudget

WEIGHTS = 1_000_000
LAYOUT = CacheLayout((), 10, (), 0, has_states=False, batchable=True)


def budget(limit=None, layout=LAYOUT, token_seconds=1e-9, pass_bytes_per_token=3, score_bytes=2):
    return MemoryBudget(layout, WEIGHTS, limit, pass_bytes_per_token, score_bytes, ChunkSizer(token_seconds))


@pytest.mark.parametrize(
    ("decoding", "joining", "expected"),
    [
        pytest.param([], [], 0, id="nothing"),
        pytest.param([], [256], 2560 + 256 * (3 + 2 * 256), id="a single sequence is not copied"),
        pytest.param([256], [], 2560 + 256 * (3 + 2 * 256), id="a running sequence"),
        pytest.param([256, 512], [], 2 * 5120 + 512 * (3 + 2 * 512), id="all are padded to the longest"),
        pytest.param([256], [512], 2 * 5120 + (2560 + 5120) + 512 * (3 + 2 * 512), id="joining copies both"),
        pytest.param([], [256, 256], 2 * 2560 + 2 * 2560 + 512 * (3 + 2 * 256), id="two join each other"),
        pytest.param([10_000], [], 102_400 + MAX_TOKENS * (3 + 2 * 10_000), id="the length of a pass is limited"),
    ],
)
def test_the_peak_is_weights_batch_copies_and_one_pass(decoding, joining, expected):
    assert WEIGHTS + expected == budget().peak_bytes(decoding, joining)


def test_the_size_of_a_pass_follows_the_chunk_sizer():
    slow = budget(token_seconds=0.01)

    assert WEIGHTS + 102_400 + 512 * (3 + 2 * 10_000) == slow.peak_bytes([10_000])


def test_windows_and_states_are_counted_once_per_sequence():
    layout = CacheLayout((), 10, (Window(300, 5), Window(100_000, 1)), 77, has_states=True, batchable=True)
    estimate = budget(layout=layout, pass_bytes_per_token=0, score_bytes=0)

    assert WEIGHTS + 2 * (5120 + 300 * 5 + 512 + 77) == estimate.peak_bytes([512, 1])


def test_the_limit_is_exact():
    peak = budget(score_bytes=0, pass_bytes_per_token=0).peak_bytes([300], [200])

    assert budget(peak, score_bytes=0, pass_bytes_per_token=0).fits([300], [200])
    assert not budget(peak - 1, score_bytes=0, pass_bytes_per_token=0).fits([300], [200])
    assert budget().fits([2**24] * 32)


@pytest.mark.parametrize("sequences", [1, 2, 8])
@pytest.mark.parametrize("limit", [2 * WEIGHTS, 10 * WEIGHTS, 100 * WEIGHTS])
def test_the_maximum_length_is_the_longest_that_fits(sequences, limit):
    limited = budget(limit)

    max_tokens = limited.max_tokens(sequences)

    assert limited.fits([], [max_tokens] * sequences)
    assert not limited.fits([], [max_tokens + 2 * GROWTH_TOKENS] * sequences)


def test_the_maximum_length_is_unlimited_without_a_limit_or_if_caches_do_not_grow():
    assert budget().max_tokens(8) is None
    layout = CacheLayout((), 0, (Window(100, 5),), 77, has_states=True, batchable=True)
    assert budget(10 * WEIGHTS, layout, pass_bytes_per_token=0, score_bytes=0).max_tokens(8) is None


@pytest.mark.parametrize("limit", [0, WEIGHTS - 1])
def test_nothing_fits_if_the_weights_do_not(limit):
    assert budget(limit).max_tokens(1) == 0


def test_an_ordinary_request_fits_into_the_serving_bytes():
    estimate = budget(token_seconds=1e-6, pass_bytes_per_token=200_000, score_bytes=100)

    estimate.set_limit(estimate.serving_bytes(ORDINARY_TOKENS))

    assert estimate.fits([], [ORDINARY_TOKENS])
    assert estimate.chunk_sizer.tokens(shared=False) >= 4 * MIN_TOKENS


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (WEIGHTS, MIN_TOKENS),
        (WEIGHTS + 10**7, MIN_TOKENS),
        (WEIGHTS + 10**8, 118),
        (WEIGHTS + 10**12, MAX_TOKENS),
        (None, MAX_TOKENS),
    ],
)
def test_chunks_are_as_short_as_the_limit_requires(limit, expected):
    estimate = budget(token_seconds=1e-6, pass_bytes_per_token=200_000, score_bytes=100)

    estimate.set_limit(limit)

    assert expected == estimate.chunk_sizer.tokens(shared=False)


@pytest.mark.parametrize("context", [0, 1_000, 30_000, 200_000])
def test_passes_shrink_with_the_context_so_that_their_scores_fit(context):
    limit = WEIGHTS + 10**9
    estimate = budget(limit, token_seconds=1e-6, pass_bytes_per_token=1_000, score_bytes=100)

    estimate.set_context(context)
    tokens = estimate.chunk_sizer.tokens(shared=False)

    used = tokens * (1_000 + 100 * (context + tokens))
    assert used <= 10**9 / 4 or tokens == MIN_TOKENS
    assert (tokens + 1) * (1_000 + 100 * (context + tokens + 1)) > 10**9 / 4


def test_scores_do_not_keep_a_long_sequence_from_fitting():
    estimate = budget(WEIGHTS + 10**9, token_seconds=1e-6, pass_bytes_per_token=1_000, score_bytes=100)

    assert estimate.fits([], [30_000])
    assert estimate.peak_bytes([30_000]) <= WEIGHTS + 10**9
    assert budget(None, token_seconds=1e-6, pass_bytes_per_token=1_000, score_bytes=100).peak_bytes([30_000]) > 10**9


def test_the_intermediates_of_a_pass_are_at_most_a_quarter_of_the_free_memory():
    assert 96 * (3 + 2 * 96) == budget(token_seconds=0.1).pass_bytes
    assert budget(WEIGHTS + 10**6).pass_bytes <= 10**6 / 4


# Groups of ranks


def group(own_limit, *limits, layout=LAYOUT):
    estimate = budget(own_limit)
    estimate.peers = [budget(limit, layout) for limit in limits]
    return estimate


def test_the_rank_with_the_least_memory_decides():
    tight = WEIGHTS + 10**6
    assert group(10 * WEIGHTS, tight).max_tokens(2) == budget(tight).max_tokens(2)
    assert group(tight, 10 * WEIGHTS).max_tokens(2) == budget(tight).max_tokens(2)
    assert group(None, None).max_tokens(2) is None
    longest = budget(tight).max_tokens(1)
    assert group(None, tight).fits([], [longest])
    assert not group(None, tight).fits([], [longest + 2 * GROWTH_TOKENS])


def test_passes_fit_into_the_memory_of_every_rank():
    tight, wide = group(None, WEIGHTS + 10**6), budget(WEIGHTS + 10**6)
    tight.set_context(1000)
    wide.set_context(1000)
    assert tight.chunk_sizer.max_tokens == wide.chunk_sizer.max_tokens < MAX_TOKENS


def test_cached_prefixes_fit_into_the_memory_of_every_rank():
    half = CacheLayout((), 5, (), 0, has_states=False, batchable=True)
    estimate = group(10 * WEIGHTS, 2 * WEIGHTS, layout=half)
    peak = estimate.peak_bytes([512])
    (peer,) = estimate.peers
    # What is cached takes twice as many bytes here as there.
    assert estimate.spare_bytes(peak, [512], []) == 2 * (2 * WEIGHTS - peer.peak_bytes([512]))
    assert group(None, None).spare_bytes(peak, [512], []) is None
    assert budget(10 * WEIGHTS).spare_bytes(peak, [512], []) == 10 * WEIGHTS - peak
