import mlx.core as mx
import pytest

from osaurusd.rpc import messages
from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.runners.loading import apply_limits, load_model_folder, wired_bytes

METAL = Device("metal", "Apple M4", 1000)


@pytest.fixture
def calls(monkeypatch):
    """Records the calls that change MLX's limits, without changing them."""
    calls = []
    for name in ("set_wired_limit", "set_memory_limit", "set_cache_limit", "synchronize"):
        monkeypatch.setattr(mx, name, lambda *values, name=name: calls.append((name, *values)))
    return calls


@pytest.mark.parametrize(
    ("wire", "weights", "device", "expected"),
    [
        ("auto", 600, METAL, None),
        ("auto", 601, METAL, 601),
        ("auto", 2000, METAL, 1000),
        ("always", 10, METAL, 10),
        ("never", 2000, METAL, None),
        ("always", 2000, CPU, None),
        ("always", 2000, Device("cuda", "H100", 1000), None),
    ],
)
def test_weights_are_wired_as_configured_and_never_beyond_the_working_set(wire, weights, device, expected):
    assert expected == wired_bytes(wire, weights, device)


def test_weights_are_wired_once_after_they_are_loaded(tiny_folder, calls):
    limits = {"memory_limit_bytes": 10**10, "cache_limit_bytes": 5}
    device = Device("metal", "Apple M4", 10**12)

    load_model_folder(messages.Load(path=str(tiny_folder), wire="always", **limits), device=device)
    apply_limits(messages.Limits(**limits))

    wired = [call for call in calls if call[0] == "set_wired_limit"]
    assert 1 == len(wired)
    assert 0 < wired[0][1] <= mx.get_active_memory() + 10**8
    assert ("synchronize",) == calls[calls.index(wired[0]) - 1]


def test_limits_change_only_while_nothing_is_computed(calls):
    apply_limits(messages.Limits(memory_limit_bytes=7, cache_limit_bytes=5), min_cache_bytes=6)

    assert [("synchronize",), ("set_memory_limit", 7), ("set_cache_limit", 6)] == calls
