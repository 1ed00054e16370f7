import pytest

from osaurusd.worker.engine.chunk_sizer import BURST_PASS_TOKENS, EFFICIENT_TOKENS, MAX_TOKENS, MIN_TOKENS, ChunkSizer

MS = 0.001


def test_token_time_is_a_moving_average_that_trusts_short_times_more_than_long_ones():
    sizer = ChunkSizer(1 * MS)

    sizer.record_prefill(100, 300 * MS)
    assert sizer.token_seconds == pytest.approx(1.3 * MS)
    sizer.record_prefill(100, 100 * MS)
    assert sizer.token_seconds == pytest.approx(1.15 * MS)
    for _ in range(60):
        sizer.record_prefill(100, 300 * MS)
    assert sizer.token_seconds == pytest.approx(3 * MS, rel=1e-3)


def test_the_first_decode_step_is_not_averaged():
    sizer = ChunkSizer(1 * MS)

    sizer.record_decode(40 * MS)

    assert sizer.step_seconds == 40 * MS


def test_the_fixed_time_of_a_pass_does_not_count_as_token_time():
    sizer = ChunkSizer(1 * MS, pass_seconds=50 * MS)

    for _ in range(60):
        sizer.record_prefill(45, (50 + 45 * 2) * MS)

    assert sizer.token_seconds == pytest.approx(2 * MS, rel=1e-3)
    assert 25 == sizer.pass_tokens
    assert (800 - 50) // 2 // 16 * 16 == sizer.tokens(shared=False)


def test_a_decode_step_corrects_a_fixed_time_that_was_measured_too_long():
    sizer = ChunkSizer(1 * MS, pass_seconds=500 * MS)

    sizer.record_prefill(100, 100 * MS)
    assert sizer.token_seconds == pytest.approx((0.5 + 0.5 * 0.25) * MS)
    sizer.record_decode(40 * MS)
    sizer.record_decode(60 * MS)

    assert 40 * MS == sizer.pass_seconds


@pytest.mark.parametrize(("tokens", "expected"), [(20, 10 * MS), (45, 16.25 * MS), (2000, 50 * MS)])
def test_a_first_prompt_waits_for_others_for_a_share_of_its_own_time(tokens, expected):
    assert ChunkSizer(1 * MS, pass_seconds=20 * MS).batching_seconds(tokens) == pytest.approx(expected)


def test_short_passes_are_not_measured():
    sizer = ChunkSizer(1 * MS)

    sizer.record_prefill(MIN_TOKENS - 1, 10.0)

    assert sizer.token_seconds == 1 * MS


@pytest.mark.parametrize(
    ("token", "expected"), [(1 * MS, 800), (0.5 * MS, 1600), (0.01 * MS, MAX_TOKENS), (1000 * MS, MIN_TOKENS)]
)
def test_without_running_sequences_a_chunk_takes_less_than_a_second(token, expected):
    assert expected == ChunkSizer(token, step_seconds=1 * MS).tokens(shared=False)


@pytest.mark.parametrize(
    ("token", "step", "expected"),
    [
        pytest.param(1 * MS, 0, EFFICIENT_TOKENS, id="the shortest efficient chunk"),
        pytest.param(1 * MS, 5 * MS, EFFICIENT_TOKENS, id="fast steps"),
        pytest.param(1 * MS, 20 * MS, 80, id="four steps, in multiples of 16"),
        pytest.param(10 * MS, 20 * MS, 16, id="the stall budget, in multiples of 16"),
        pytest.param(10 * MS, 80 * MS, 32, id="slow steps: six, one of which is the decode step"),
        pytest.param(10 * MS, 200 * MS, 80, id="slower steps: four of them make an efficient chunk"),
        pytest.param(1000 * MS, 1 * MS, MIN_TOKENS, id="the minimum"),
        pytest.param(0.001 * MS, 20 * MS, MAX_TOKENS, id="the maximum"),
    ],
)
def test_chunks_bound_the_stall_of_running_sequences(token, step, expected):
    assert expected == ChunkSizer(token, step_seconds=step).tokens(shared=True)


@pytest.mark.parametrize(("stall", "expected"), [(0.05, 16), (0.2, 32), (10, 64)])
def test_the_stall_budget_is_configurable(stall, expected):
    """At 5 ms per token and 1 ms per step only the budget prevents an efficient chunk."""
    assert expected == ChunkSizer(5 * MS, stall, step_seconds=1 * MS).tokens(shared=True)


def test_token_times_at_a_long_context_do_not_affect_those_at_a_short_one():
    sizer = ChunkSizer(1 * MS)
    sizer.context = 1500
    sizer.record_prefill(100, 1.0)

    assert 80 == sizer.tokens(shared=False)
    sizer.context = 4000
    assert 80 == sizer.tokens(shared=False)
    sizer.context = 0
    assert 800 == sizer.tokens(shared=False)


def test_chunks_keep_the_stall_short_while_tokens_take_longer_and_longer():
    step, token = 40 * MS, 2 * MS
    sizer = ChunkSizer(token, pass_seconds=step)
    sizer.record_decode(step)
    stalls = []
    while sizer.context < 2000:
        count = sizer.tokens(shared=True)
        seconds = step + count * token * (1 + sizer.context / 600)
        stalls.append((step + seconds) / step)
        sizer.record_prefill(count, seconds)
        sizer.context += count

    assert max(stalls) < 7


def test_a_gpu_processes_long_passes_when_nothing_decodes():
    assert MAX_TOKENS == ChunkSizer(5 * MS, on_gpu=True).tokens(shared=False)


@pytest.mark.parametrize(("stall", "expected"), [(0.2, 96), (1.0, 496)])
def test_a_gpu_uses_half_of_the_stall_budget_beside_running_sequences(stall, expected):
    assert expected == ChunkSizer(1 * MS, stall, step_seconds=1 * MS, on_gpu=True).tokens(shared=True)


@pytest.mark.parametrize("token", [2 * MS, 5 * MS, 15 * MS])
def test_the_passes_of_a_burst_do_not_depend_on_how_busy_the_machine_is(token):
    sizer = ChunkSizer(token, pass_seconds=50 * MS)

    assert BURST_PASS_TOKENS == sizer.burst_pass_tokens


def test_the_passes_of_a_burst_are_short_on_a_slow_machine_and_within_memory():
    assert 96 == ChunkSizer(100 * MS).burst_pass_tokens == ChunkSizer(100 * MS).burst_tokens
    assert 40 == ChunkSizer(1 * MS, max_tokens=40).burst_pass_tokens
