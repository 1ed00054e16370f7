"""What depends on the device, decided from its facts: no GPU is needed."""

import mlx.core as mx
import pytest

from osaurusd.inference.request import SamplingParams
from osaurusd.worker.engine import probe
from osaurusd.worker.engine.chunk_sizer import MAX_TOKENS
from osaurusd.worker.engine.device import CPU, Device, is_device_failure
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.probe import Probe
from tests.osaurusd.worker.engine.harness import AlternatingConstraint, build_request, run, tokens_of
from tests.osaurusd.worker.networks import PROMPT, is_greedy, tokens

METAL = Device("metal", "Apple M4", 100 * 2**30)


def test_the_default_device_of_these_tests_is_the_cpu():
    assert CPU == Device.default()
    assert not CPU.is_gpu


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error"), True),
        (RuntimeError("[matmul] Last dimension of first input must match"), False),
        (ValueError("[METAL]"), False),
    ],
)
def test_failed_metal_commands_are_recognized(error, expected):
    assert expected == is_device_failure(error)


@pytest.mark.parametrize(
    ("device", "fused", "expected"),
    [(CPU, (16,), 2 * 4), (METAL, (16,), 0), (METAL, (64, 128), 2 * 4), (Device("cuda"), (16,), 0)],
)
def test_scores_count_unless_a_gpu_fuses_attention_for_the_head_dimension(
    network, monkeypatch, device, fused, expected
):
    """The network has two heads of 16 dimensions."""
    monkeypatch.setattr(probe, "FUSED_HEAD_DIMENSIONS", fused)

    assert expected == Probe.from_network(network(), device).score_bytes


def test_head_dimensions_over_128_are_not_fused():
    assert 128 == max(probe.FUSED_HEAD_DIMENSIONS)


def test_a_gpu_never_waits_before_a_prompt(network, monkeypatch):
    engine = Engine(network(), [], Limits(), device=METAL)
    monkeypatch.setattr(engine._executor, "synchronize", lambda: pytest.fail("the GPU would idle"))

    frames = run(engine, build_request(1, PROMPT, 30), build_request(2, tokens(300), 5))

    assert is_greedy(network(), PROMPT, tokens_of(frames, 1))
    assert is_greedy(network(), tokens(300), tokens_of(frames, 2))


def test_requests_keep_freed_buffers(network, monkeypatch):
    engine = Engine(network(), [], Limits(memory_bytes=mx.get_active_memory() + 10**9), device=METAL)
    monkeypatch.setattr(mx, "clear_cache", lambda: pytest.fail("the next pass would allocate its buffers again"))

    run(engine, *[build_request(id_, tokens(300, id_), 5) for id_ in range(3)])


def test_passes_alone_are_long_on_a_gpu(network):
    assert MAX_TOKENS == Engine(network(), [], Limits(), device=METAL).chunk_sizer.tokens(shared=False)


def test_random_and_constrained_sequences_work_together_on_a_gpu(network):
    engine = Engine(network(), [], Limits(), device=METAL)
    seeded = SamplingParams(temperature=1.0, seed=1, top_p=0.9)

    frames = run(
        engine,
        build_request(1, PROMPT, 10),
        build_request(2, PROMPT, 10, constraint=AlternatingConstraint()),
        build_request(3, PROMPT, 10, seeded),
        build_request(4, PROMPT, 10, seeded),
    )

    assert is_greedy(network(), PROMPT, tokens_of(frames, 1))
    assert [1, 0] * 5 == [token % 2 for token in tokens_of(frames, 2)]
    assert tokens_of(frames, 3) == tokens_of(frames, 4)
