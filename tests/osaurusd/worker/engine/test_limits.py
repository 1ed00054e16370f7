"""What a worker may use can change while it runs."""

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.inference.events import Completed
from osaurusd.rpc import messages
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.memory import ORDINARY_TOKENS, Memory
from osaurusd.worker.engine.pace import LEAST_TOKENS, MOST_TOKENS, Pace
from osaurusd.worker.engine.prefix import PrefixCache
from tests.osaurusd.worker.networks import request, run

WEIGHTS = 10**8


@pytest.fixture
def memory(network):
    """Of a model whose passes are as expensive as memory allows."""
    return Memory(
        layout=Engine(network(), [0], Limits()).layout,
        weights_bytes=WEIGHTS,
        limit_bytes=None,
        pass_bytes_per_token=200_000,
        score_bytes=100,
        pace=Pace(token_seconds=1e-6),
    )


def test_what_a_model_needs_at_the_least_is_enough_for_an_ordinary_request(memory):
    least = memory.least_bytes(ORDINARY_TOKENS)

    memory.limit(least)

    assert memory.fits([], [ORDINARY_TOKENS])
    assert memory.pace.tokens(shared=False) >= 4 * LEAST_TOKENS


def test_passes_are_as_short_as_memory_asks_for_and_no_shorter(memory):
    memory.limit(WEIGHTS + 10**7)
    assert memory.pace.tokens(shared=False) == LEAST_TOKENS
    memory.limit(WEIGHTS + 10**12)
    assert memory.pace.tokens(shared=False) == MOST_TOKENS
    memory.limit(WEIGHTS)
    assert memory.pace.tokens(shared=False) == LEAST_TOKENS
    memory.limit(None)
    assert memory.pace.tokens(shared=False) == MOST_TOKENS


def test_a_prefix_cache_can_be_made_smaller_and_larger_again():
    cache = PrefixCache(10**6, has_states=False)

    def keep(start):
        tokens = np.arange(start, start + 512, dtype=np.int32)
        cache.insert(tokens, lambda a, b: [mx.array(tokens[a:b]).astype(mx.float32)[None, None, :, None]])

    keep(0)
    keep(1000)
    full = cache.nbytes

    cache.resize(full // 2)
    assert 0 < cache.nbytes <= full // 2
    cache.resize(0)
    assert cache.nbytes == 0
    assert not cache.enabled
    keep(0)
    assert cache.nbytes == 0
    cache.resize(10**6)
    keep(0)
    assert cache.nbytes > 0


def test_an_engine_keeps_within_new_limits_and_goes_on(network):
    engine = Engine(network(), [0], Limits(prefix_cache_bytes=10**7))
    run(engine, request(1, list(range(1, 600)), max_tokens=3))
    assert engine.stats().prefix_cache_bytes > 0

    engine.set_limits(Limits(memory_bytes=mx.get_active_memory() + 10**9))

    assert engine.stats().prefix_cache_bytes == 0
    frames = run(engine, request(2, list(range(1, 600)), max_tokens=3))
    assert [Completed] == [type(frame) for frame in frames if isinstance(frame, Completed | messages.Failed)]


def test_an_engine_counts_its_passes_and_what_requests_have_reserved(network):
    engine = Engine(network(), [], Limits(memory_bytes=mx.get_active_memory() + 10**10))
    idle, before = engine.reserved_bytes, engine.progress
    engine.add(request(1, list(range(1, 300)), max_tokens=50))
    engine.prefill()

    assert engine.reserved_bytes > idle
    while engine.busy:
        counted = engine.progress
        engine.decode()
        engine.prefill()
        assert engine.progress > counted
    assert engine.progress >= before + 50
    assert engine.reserved_bytes == idle
