import pytest
from msgspec.structs import replace

from osaurusd.models.record import MemoryEstimate
from osaurusd.pool.config import WorkerLimits
from osaurusd.pool.memory import build_limits, build_load, estimate_bytes
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
def test_the_estimate_counts_weights_in_their_type_in_memory(record, dequantize, on_cpu, budget, weights):
    estimate = estimate_bytes(record, WorkerLimits(dequantize=dequantize), budget, on_cpu=on_cpu)

    cache_factor = 2 if weights == 4 * GB else 1
    assert estimate == pytest.approx(1.05 * weights + 1.33 * cache_factor * 2048 * 100_000, rel=0.01)


def test_a_short_context_limits_the_cache_of_the_estimate(record):
    assert estimate_bytes(replace(record, context_length=100), WorkerLimits(), 16 * GB, on_cpu=False) < 0.56 * GB


def test_a_model_of_unknown_size_may_try_to_load(model):
    assert estimate_bytes(model(), WorkerLimits(), 16 * GB, on_cpu=True) == 0


def test_memory_beyond_the_needs_is_divided_within_the_limits():
    limits = WorkerLimits(prefix_cache_bytes=3 * GB, cache_limit_bytes=GB // 2)

    assert build_limits(limits, 6 * GB, 2 * GB) == messages.Limits(
        memory_limit_bytes=6 * GB, cache_limit_bytes=GB // 2, prefix_cache_bytes=2 * GB
    )
    assert build_limits(limits, 60 * GB, 2 * GB) == messages.Limits(
        memory_limit_bytes=60 * GB, cache_limit_bytes=GB // 2, prefix_cache_bytes=3 * GB
    )


def test_a_model_without_spare_memory_has_no_prefix_cache():
    assert build_limits(WorkerLimits(prefix_cache_bytes=GB), GB, 2 * GB).prefix_cache_bytes == 0


def test_a_load_request_carries_path_limits_and_memory(record):
    limits = WorkerLimits(
        dequantize="never", max_waiting=7, stall_seconds=0.5, feature_cache_bytes=8, max_image_pixels=9, wire="never"
    )
    memory = messages.Limits(memory_limit_bytes=4, cache_limit_bytes=3, prefix_cache_bytes=1)

    assert build_load(record, limits, memory) == messages.Load(
        path=str(record.path),
        context_length=8192,
        dequantize="never",
        memory_limit_bytes=4,
        cache_limit_bytes=3,
        prefix_cache_bytes=1,
        max_waiting=7,
        stall_seconds=0.5,
        feature_cache_bytes=8,
        max_image_pixels=9,
        wire="never",
    )


@pytest.mark.parametrize(
    ("runner", "task", "loaded_task", "vision"),
    [
        ("text", "rerank", "generate", False),
        ("vision", "generate", "generate", True),
        ("encoder", "embed", "embed", False),
    ],
)
def test_a_load_request_says_what_runs_the_model(record, runner, task, loaded_task, vision):
    load = build_load(replace(record, runner=runner, task=task), WorkerLimits(), messages.Limits(0, 0, 0))

    assert (loaded_task, vision) == (load.task, load.vision)
