"""Leases, loads and crashes in a pool of fake workers."""

import asyncio
import json
import os
import signal

import pytest

from osaurusd.errors import LoadFailed, SlowClient, VersionMismatch, WorkerCrashed
from osaurusd.platform.power import PowerAssertion
from osaurusd.pool.config import WorkerLimits
from osaurusd.pool.state import SchedulerConfig
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.pool.helpers import (
    block_until,
    build_request,
    collect,
    first_delta,
    generate_text,
    has_exited,
    is_dead,
    lease_and_generate,
    received,
    running_request,
    turns,
    until,
)


def worker_pid(pool):
    """Return the pid of the only worker."""
    (worker,) = pool.snapshot()
    return worker.pid


# Leases


async def test_a_lease_loads_the_model_and_serves_requests(pool, model):
    assert await lease_and_generate(pool, model(), "the capital is Paris") == "the capital is Paris "


async def test_later_leases_use_the_same_worker(pool, model, processes):
    await lease_and_generate(pool, model())
    pid = worker_pid(pool)

    await lease_and_generate(pool, model())

    assert pid == worker_pid(pool)
    assert received(model()) == ["load", "generate", "generate"]
    assert len(processes.children()) == 1


async def test_concurrent_leases_share_one_load(pool, model, gate, processes):
    requests = [asyncio.create_task(lease_and_generate(pool, model("slow_ready"), f"number {n}")) for n in range(5)]
    await gate.arrived.wait()
    assert [(5, 0)] == [(worker.waiting, worker.in_flight) for worker in pool.snapshot()]

    gate.open()

    assert [f"number {n} " for n in range(5)] == await asyncio.gather(*requests)
    assert len(processes.children()) == 1
    assert received(model("slow_ready")).count("load") == 1


async def test_requests_to_one_worker_run_concurrently(pool, model):
    async with running_request(pool, model()) as stalled:
        assert await lease_and_generate(pool, model(), "a b c") == "a b c "
        assert not stalled.done()


async def test_each_model_has_its_own_worker(pool, model, processes):
    one, two = model(name="One"), model(name="Two")

    outputs = await asyncio.gather(lease_and_generate(pool, one, "1"), lease_and_generate(pool, two, "2"))

    assert list(outputs) == ["1 ", "2 "]
    assert {worker.key for worker in pool.snapshot()} == {"One", "Two"}
    assert len(processes.children()) == 2


async def test_a_lease_reports_how_long_it_waited_for_the_load(make_pool, model, gate, clock):
    pool = make_pool(clock=clock)

    async def lease_times():
        async with pool.lease(model("slow_ready")) as lease:
            return lease.queue_seconds, lease.load_seconds

    first = asyncio.create_task(lease_times())
    await gate.arrived.wait()
    clock.advance(2)
    second = asyncio.create_task(lease_times())
    await turns()
    clock.advance(3)
    gate.open()

    assert (0, 5) == await first
    assert (0, 3) == await second
    assert (0, 0) == await lease_times()


async def test_a_client_that_disconnects_cancels_its_request_in_the_worker(pool, model):
    async with running_request(pool, model()) as stalled:
        stalled.cancel()
        await asyncio.wait({stalled})
        await lease_and_generate(pool, model())

    assert received(model()) == ["load", "generate", "cancel", "generate"]


async def test_a_flood_that_is_not_read_does_not_delay_other_requests(pool, model):
    async with pool.lease(model()) as lease:
        flood = lease.client.generate(build_request("flood"))
        await first_delta(flood)

        assert await lease_and_generate(pool, model(), "a b c") == "a b c "

        with pytest.raises(SlowClient):
            await collect(flood)
        await generate_text(lease.client)
    assert "cancel" in received(model())


async def test_a_load_carries_the_limits(make_pool, model):
    limits = WorkerLimits(dequantize="never", cache_limit_bytes=678)
    pool = make_pool(limits=limits, scheduler=SchedulerConfig(budget_bytes=12345))

    await lease_and_generate(pool, model())

    load = json.loads((model().path / "load.json").read_text())
    expected = {"dequantize": "never", "memory_limit_bytes": 12345, "cache_limit_bytes": 678, "context_length": 512}
    assert expected.items() <= load.items()


async def test_sleep_is_prevented_only_while_requests_run(make_pool, model, processes):
    pool = make_pool(power=PowerAssertion(platform="darwin", command=("sleep", "61"), delay=0))
    worker = await pool.load(model())

    def assertions():
        return [child for child in processes.children() if child.pid != worker.pid]

    async with running_request(pool, model()):
        await until(assertions)

    await until(lambda: not assertions())


# Snapshots


async def test_snapshots_follow_a_worker_through_its_life(make_pool, model, gate, clock):
    pool = make_pool(clock=clock)
    assert pool.snapshot() == []
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()
    clock.advance(4)

    (starting,) = pool.snapshot()
    gate.open()
    await request
    clock.advance(2)
    (idle,) = pool.snapshot()
    async with pool.lease(model("slow_ready")):
        (busy,) = pool.snapshot()
    unloading = asyncio.create_task(pool.unload("slow_ready"))
    await asyncio.sleep(0)
    (stopping,) = pool.snapshot()
    await unloading

    assert (starting.state, starting.pid, starting.device) == (WorkerState.STARTING, None, None)
    assert (starting.mlx_bytes, starting.waiting) == (0, 1)
    assert (idle.state, idle.device, idle.mlx_bytes) == (WorkerState.READY, "fake", 1234)
    assert (idle.in_flight, idle.waiting) == (0, 0)
    assert (idle.load_seconds, idle.idle_seconds) == (4, 2)
    assert (busy.state, busy.in_flight, busy.idle_seconds) == (WorkerState.READY, 1, None)
    assert (stopping.state, stopping.pid) == (WorkerState.STOPPING, idle.pid)
    assert pool.snapshot() == []


# Failed loads


async def test_a_failed_load_fails_every_waiting_lease(pool, model):
    results = await asyncio.gather(
        *[lease_and_generate(pool, model("fail_load")) for _ in range(3)], return_exceptions=True
    )

    assert [LoadFailed] * 3 == [type(result) for result in results]
    assert "the weights are missing" in results[0].message
    (worker,) = pool.snapshot()
    assert (WorkerState.FAILED, results[0].message) == (worker.state, worker.last_exit)


async def test_the_next_lease_retries_a_failed_load(pool, model):
    for _ in range(2):
        with pytest.raises(LoadFailed):
            await lease_and_generate(pool, model("fail_load"))

    assert received(model("fail_load")) == ["load", "load"]


async def test_a_worker_of_another_version_fails_the_lease(pool, model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "wrong_version")

    with pytest.raises(VersionMismatch, match="restart"):
        await lease_and_generate(pool, model())


async def test_a_failed_load_does_not_affect_other_models(pool, model):
    async with running_request(pool, model(name="Good")) as stalled:
        with pytest.raises(LoadFailed):
            await lease_and_generate(pool, model("fail_load"))

        assert not stalled.done()
        assert await lease_and_generate(pool, model(name="Good"), "a b") == "a b "


async def test_a_worker_that_exits_right_after_loading_fails_the_lease(pool, model, monkeypatch, processes):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "brief")
    request = asyncio.create_task(lease_and_generate(pool, model()))
    child = await processes.wait_for_child()

    # The loop finds Hello, Loaded and the end of file in one iteration.
    block_until(lambda: is_dead(child))

    async with asyncio.timeout(60):
        with pytest.raises(WorkerCrashed):
            await request


# Crashes


async def test_a_crash_fails_every_running_request(pool, model):
    async with running_request(pool, model()) as stalled:
        with pytest.raises(WorkerCrashed, match=r"\(exit code 7\)") as caught:
            await lease_and_generate(pool, model(), "crash")

        assert caught.value.message.splitlines()[-1] == "the GPU caught fire"
        with pytest.raises(WorkerCrashed, match="the GPU caught fire"):
            await stalled


async def test_invalid_data_fails_running_requests_and_stops_the_process(pool, model):
    async with running_request(pool, model()) as stalled:
        pid = worker_pid(pool)

        with pytest.raises(WorkerCrashed, match="invalid data"):
            await lease_and_generate(pool, model(), "garbage")

        assert has_exited(pid)
        with pytest.raises(WorkerCrashed):
            await stalled


async def test_a_crash_does_not_affect_other_models(pool, model):
    async with running_request(pool, model(name="Good")) as stalled:
        with pytest.raises(WorkerCrashed):
            await lease_and_generate(pool, model(name="Bad"), "crash")

        assert not stalled.done()


@pytest.mark.parametrize("iterations", range(3))
async def test_the_lease_after_a_crash_starts_a_new_worker(pool, model, iterations):
    with pytest.raises(WorkerCrashed):
        await lease_and_generate(pool, model(), "crash")
    await turns(iterations)

    async with asyncio.timeout(60):
        assert await lease_and_generate(pool, model(), "again") == "again "

    assert received(model()) == ["load", "generate", "load", "generate"]


async def test_an_idle_worker_that_was_killed_is_replaced_by_the_next_lease(pool, model):
    await lease_and_generate(pool, model())
    pid = worker_pid(pool)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.snapshot()[0].state == WorkerState.FAILED)
    assert "SIGKILL" in pool.snapshot()[0].last_exit

    assert await lease_and_generate(pool, model(), "again") == "again "
    assert pid != worker_pid(pool)


async def test_a_lease_that_outlives_its_worker_fails(pool, model):
    async with pool.lease(model()) as lease:
        with pytest.raises(WorkerCrashed):
            await generate_text(lease.client, "crash")

        async with asyncio.timeout(60):
            with pytest.raises(WorkerCrashed):
                await generate_text(lease.client)


async def test_a_model_that_keeps_crashing_is_rejected_until_its_backoff_is_over_or_it_is_loaded(
    make_pool, model, clock
):
    pool = make_pool(clock=clock)
    for _ in range(2):
        with pytest.raises(WorkerCrashed):
            await lease_and_generate(pool, model(), "crash")

    with pytest.raises(WorkerCrashed, match=r"(?s)the GPU caught fire.*in 1 s"):
        await lease_and_generate(pool, model())

    assert (await pool.load(model())).state == WorkerState.READY
    assert await lease_and_generate(pool, model(), "a b") == "a b "


# Cancelled leases


async def test_a_cancelled_lease_does_not_stop_the_load(pool, model, gate):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()

    request.cancel()
    await asyncio.wait({request})
    gate.open()

    assert await lease_and_generate(pool, model("slow_ready"), "later") == "later "
    assert received(model("slow_ready")).count("load") == 1


async def test_a_lease_cancelled_during_the_load_does_not_count_as_use(pool, model, gate, processes):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()

    request.cancel()
    await asyncio.wait({request})

    assert [(0, 0)] == [(worker.waiting, worker.in_flight) for worker in pool.snapshot()]
    await pool.unload("slow_ready")
    assert processes.children() == []


async def test_a_lease_cancelled_in_the_iteration_of_its_grant_does_not_count_as_use(pool, model):
    await lease_and_generate(pool, model())

    request = asyncio.create_task(lease_and_generate(pool, model(), "stall"))
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})

    assert [0] == [worker.in_flight for worker in pool.snapshot()]
    await pool.unload("echo")
