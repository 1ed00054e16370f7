from dataclasses import replace

import pytest

from osaurusd.models.record import MemoryEstimate
from osaurusd.pool.shares import KeepAlive, Share, estimate, limits
from osaurusd.rpc import messages

GB = 10**9


@pytest.fixture
def record(model):
    """A model of a billion parameters at 4 bits."""
    memory = MemoryEstimate(weights_bytes=GB // 2, cache_bytes_per_token=100_000)
    return replace(model(), parameters=GB, memory=memory, context_length=8192)


@pytest.mark.parametrize(
    ("dequantize", "on_cpu", "budget", "weights"),
    [
        ("auto", False, 16 * GB, GB // 2),
        ("auto", True, 16 * GB, 4 * GB),
        ("auto", True, 3 * GB, GB // 2),
        ("never", True, 16 * GB, GB // 2),
        ("always", False, 16 * GB, 4 * GB),
    ],
)
def test_weights_count_as_they_will_be_in_memory(record, dequantize, on_cpu, budget, weights):
    needed = estimate(record, Share(dequantize=dequantize), budget, on_cpu=on_cpu)

    wide = 2 if weights == 4 * GB else 1
    assert needed == pytest.approx(1.05 * weights + 1.33 * wide * 2048 * 100_000, rel=0.01)


def test_a_short_context_needs_no_more_than_itself(record):
    needed = estimate(replace(record, context_length=100), Share(), 16 * GB, on_cpu=False)

    assert needed < 0.56 * GB


def test_a_model_of_which_nothing_is_known_is_let_try(model):
    assert estimate(model(), Share(), 16 * GB, on_cpu=True) == 0


def test_what_is_spare_is_divided_and_bounded():
    share = Share(prefix_cache_bytes=3 * GB, cache_limit_bytes=GB // 2)

    assert limits(share, 6 * GB, 2 * GB, wired=False) == messages.Limits(
        memory_limit_bytes=6 * GB, cache_limit_bytes=GB // 2, prefix_cache_bytes=2 * GB
    )
    assert limits(share, 60 * GB, 2 * GB, wired=True) == messages.Limits(
        memory_limit_bytes=60 * GB, cache_limit_bytes=GB // 2, prefix_cache_bytes=3 * GB, wired_limit_bytes=60 * GB
    )


def test_a_model_that_has_no_more_than_it_needs_keeps_no_prompts():
    assert limits(Share(prefix_cache_bytes=GB), GB, 2 * GB, wired=False).prefix_cache_bytes == 0


def test_a_keep_alive_goes_by_name_repo_or_alias_in_any_case(record):
    named = replace(record, name="llama", repo="Org/Llama", aliases=("fast",))
    for name in ("Llama", "org/llama", "FAST"):
        assert KeepAlive(900, {name: 5}).of(named) == 5
    assert KeepAlive(900, {"other": 5}).of(named) == 900
    assert KeepAlive(900, {"llama": -1}).of(named) is None
    assert KeepAlive(-1).of(named) is None
