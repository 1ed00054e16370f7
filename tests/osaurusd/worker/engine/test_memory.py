"""Arithmetic, by hand: a token takes 10 bytes, what is worked with 3 and 2 more for each token before it."""

import pytest

from osaurusd.worker.engine.caches import GROWTH_TOKENS, Layout, Window
from osaurusd.worker.engine.memory import Memory
from osaurusd.worker.engine.pace import MOST_TOKENS, Pace

WEIGHTS = 1_000_000
LAYOUT = Layout((), 10, (), 0, has_states=False, batchable=True)


def memory(limit=None, layout=LAYOUT, token_seconds=1e-9, **properties):
    figures = {"pass_bytes_per_token": 3, "score_bytes": 2, **properties}
    return Memory(layout, WEIGHTS, limit, pace=Pace(token_seconds), **figures)


@pytest.mark.parametrize(
    ("lengths", "joining", "expected"),
    [
        pytest.param([], [], 0, id="nothing"),
        pytest.param([], [256], 2560 + 256 * (3 + 2 * 256), id="one alone is not copied"),
        pytest.param([256], [], 2560 + 256 * (3 + 2 * 256), id="one goes on"),
        pytest.param([256, 512], [], 2 * 5120 + 512 * (3 + 2 * 512), id="as long as the longest for all"),
        pytest.param([256], [512], 2 * 5120 + (2560 + 5120) + 512 * (3 + 2 * 512), id="joining copies both"),
        pytest.param([], [256, 256], 2 * 2560 + 2 * 2560 + 256 * (3 + 2 * 256), id="two join each other"),
        pytest.param([10_000], [], 102_400 + MOST_TOKENS * (3 + 2 * 10_000), id="a pass has only so many tokens"),
    ],
)
def test_the_peak_is_weights_batch_copies_and_one_pass(lengths, joining, expected):
    assert WEIGHTS + expected == memory().peak_bytes(lengths, joining)


def test_the_size_of_a_pass_follows_the_pace():
    slow = memory(token_seconds=0.01)

    assert WEIGHTS + 102_400 + 80 * (3 + 2 * 10_000) == slow.peak_bytes([10_000])


def test_windows_and_states_are_counted_once_for_each_sequence():
    layout = Layout((), 10, (Window(300, 5), Window(100_000, 1)), 77, has_states=True, batchable=True)
    found = memory(layout=layout, pass_bytes_per_token=0, score_bytes=0)

    assert WEIGHTS + 2 * (5120 + 300 * 5 + 512 + 77) == found.peak_bytes([512, 1])


def test_what_fits_fits_to_the_byte():
    peak = memory().peak_bytes([300], [200])

    assert memory(peak).fits([300], [200])
    assert not memory(peak - 1).fits([300], [200])
    assert memory().fits([2**24] * 32)


@pytest.mark.parametrize("sequences", [1, 2, 8])
@pytest.mark.parametrize("limit", [2 * WEIGHTS, 10 * WEIGHTS, 1000 * WEIGHTS])
def test_the_most_tokens_are_the_most_that_fit(sequences, limit):
    limited = memory(limit)

    most = limited.most_tokens(sequences)

    assert limited.fits([], [most] * sequences)
    assert not limited.fits([], [most + 2 * GROWTH_TOKENS] * sequences)


def test_there_is_no_most_without_a_limit_or_where_nothing_grows():
    assert memory().most_tokens(8) is None
    states = Layout((), 0, (Window(100, 5),), 77, has_states=True, batchable=True)
    assert memory(10 * WEIGHTS, states, pass_bytes_per_token=0, score_bytes=0).most_tokens(8) is None


@pytest.mark.parametrize("limit", [0, WEIGHTS - 1])
def test_nothing_fits_where_the_weights_do_not(limit):
    assert memory(limit).most_tokens(1) == 0
