from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from osaurusd.inference.events import Completed, Usage
from osaurusd.pool.metrics import RATE_SECONDS, PoolCollector, PoolMetrics
from osaurusd.pool.snapshot import MemoryBudget, WorkerSnapshot
from osaurusd.wire.admin import WorkerState


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry, clock):
    clock.now = 100.0
    return PoolMetrics(registry, clock.time)


@pytest.fixture
def worker(metrics):
    return metrics.for_worker("m")


@pytest.fixture
def value(registry):
    """Reads a series of the model."""

    def value(name, **labels):
        return registry.get_sample_value(name, {"model": "m", **labels})

    return value


def test_the_first_token_is_timed_from_the_request_and_later_ones_from_each_other(worker, value):
    request = worker.start_request()
    for now in (100.5, 100.75, 101.0):
        request.delta_received(0, now)

    assert (0.5, 1) == tuple(value(f"osaurus_time_to_first_token_seconds_{part}") for part in ("sum", "count"))
    assert (0.5, 2) == tuple(value(f"osaurus_inter_token_seconds_{part}") for part in ("sum", "count"))
    assert worker.first_token_seconds == 0.5


def test_concurrent_choices_are_timed_separately(worker, value):
    request = worker.start_request()
    for index, now in ((0, 101.0), (1, 101.0), (0, 103.0), (1, 103.0)):
        request.delta_received(index, now)

    assert (4, 2) == tuple(value(f"osaurus_inter_token_seconds_{part}") for part in ("sum", "count"))
    assert value("osaurus_time_to_first_token_seconds_count") == 1


def test_a_prompt_that_is_only_counted_is_not_processed(worker, value):
    request = worker.start_request()
    request.completed(Completed(usage=Usage()))
    request.closed()

    assert value("osaurus_prefix_cache_requests_total", result="miss") is None


def test_a_completed_request_counts_the_exact_tokens_of_the_worker(worker, value):
    request = worker.start_request()
    request.delta_received(0, 101.0)
    request.completed(Completed(usage=Usage(prompt_tokens=20, completion_tokens=7, cached_tokens=16)))
    request.closed()

    names = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    assert [20, 16, 7] == [value(f"osaurus_{name}_total") for name in names]
    assert value("osaurus_prefix_cache_requests_total", result="hit") == 1


def test_an_interrupted_request_counts_its_deltas_once(worker, value):
    request = worker.start_request()
    request.delta_received(0, 101.0)
    request.delta_received(0, 102.0)
    request.closed()
    request.closed()

    assert value("osaurus_completion_tokens_total") == 2


def test_the_rate_covers_the_last_whole_seconds(worker, clock):
    request = worker.start_request()
    for second in range(100, 120):
        for _ in range(10):
            request.delta_received(0, second + 0.5)
    clock.now = 120.0
    assert worker.rate() == 10

    clock.now = 120.0 + RATE_SECONDS
    assert worker.rate() == 0


class FakePool:
    budget = MemoryBudget(total_bytes=100, used_bytes=60)

    def snapshot(self):
        return [
            WorkerSnapshot(
                key="M", name="m", state=WorkerState.READY, mlx_bytes=50, limit_bytes=90, in_flight=2, waiting=1
            ),
            WorkerSnapshot(key="F", name="failed", state=WorkerState.FAILED),
        ]


def test_gauges_show_the_models_in_memory_and_the_budget(registry, value):
    registry.register(PoolCollector(FakePool()))

    names = ("requests_in_flight", "requests_waiting", "model_memory_bytes", "model_limit_bytes")
    assert [2, 1, 50, 90] == [value(f"osaurus_{name}") for name in names]
    assert value("osaurus_model_state", state="ready") == 1
    assert registry.get_sample_value("osaurus_memory_budget_bytes") == 100
    assert registry.get_sample_value("osaurus_memory_used_bytes") == 60
    assert b"failed" not in generate_latest(registry)


def totals(registry):
    names = ("running_requests", "queued_requests", "kv_cache_usage_ratio")
    return [registry.get_sample_value(f"osaurus_{name}") for name in names]


def test_totals_exist_before_a_model_is_loaded(registry):
    registry.register(PoolCollector(SimpleNamespace(budget=MemoryBudget(100, 0), snapshot=lambda: [])))

    assert totals(registry) == [0, 0, 0]


def test_totals_are_over_all_models_and_the_ratio_is_that_of_models_with_a_kv_cache(registry):
    def worker(name, **fields):
        return WorkerSnapshot(key=name, name=name, state=WorkerState.READY, **fields)

    workers = [
        worker("a", running=3, queued=2, waiting=1, kv_cache_bytes=30, kv_cache_limit_bytes=40),
        # More is reserved than a limit that has shrunk.
        worker("b", running=1, kv_cache_bytes=90, kv_cache_limit_bytes=60),
        worker("embedder", running=1, kv_cache_limit_bytes=500),
    ]
    registry.register(PoolCollector(SimpleNamespace(budget=MemoryBudget(100, 0), snapshot=lambda: workers)))

    assert totals(registry) == [5, 3, 0.9]
    ratio = "osaurus_model_kv_cache_usage_ratio"
    assert [0.75, 1, 0] == [registry.get_sample_value(ratio, {"model": name}) for name in ("a", "b", "embedder")]


def test_registering_the_gauges_does_not_read_the_pool(registry):
    registry.register(PoolCollector(None))
