"""Unloading, draining and closing a pool of fake workers."""

import asyncio
import os
import signal

import pytest

from osaurusd.errors import Busy, ModelUnloaded, ShuttingDown, WorkerCrashed
from osaurusd.pool.config import KeepAlive
from osaurusd.wire.residency import EventKind
from tests.osaurusd.pool.helpers import (
    block_until,
    has_exited,
    lease_and_generate,
    running_request,
    turns,
    until,
)


def worker_pid(pool):
    """Return the pid of the only worker."""
    (worker,) = pool.snapshot()
    return worker.pid


# Unloading


async def test_unloading_returns_after_the_exit(pool, model):
    await lease_and_generate(pool, model())
    pid = worker_pid(pool)

    await pool.unload("echo")

    assert has_exited(pid)
    assert pool.snapshot() == []


async def test_unloading_an_absent_model_returns_at_once(pool):
    await pool.unload("absent")


async def test_a_busy_model_is_not_unloaded(pool, model):
    async with running_request(pool, model()) as stalled:
        with pytest.raises(Busy, match=r"1 request\(s\)"):
            await pool.unload("echo")

        assert not stalled.done()
        assert await lease_and_generate(pool, model(), "a b") == "a b "


async def test_unloading_by_force_fails_running_requests(pool, model):
    async with running_request(pool, model()) as stalled:
        pid = worker_pid(pool)

        await pool.unload("echo", force=True)

        assert has_exited(pid)
        with pytest.raises(ModelUnloaded):
            await stalled


async def test_unloading_by_force_fails_requests_that_wait_for_the_load(pool, model, gate, processes):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()

    await pool.unload("slow_ready", force=True)

    assert processes.children() == []
    with pytest.raises(ModelUnloaded):
        await request


async def test_a_worker_that_ignores_the_shutdown_request_is_unloaded(make_pool, model):
    pool = make_pool(stop_grace=0.1)
    await lease_and_generate(pool, model("hang_on_stop"))
    pid = worker_pid(pool)

    await pool.unload("hang_on_stop")

    assert has_exited(pid)


async def test_a_lease_during_an_unload_loads_the_model_again(pool, model):
    await lease_and_generate(pool, model())
    pid = worker_pid(pool)
    unloading = asyncio.create_task(pool.unload("echo"))
    await asyncio.sleep(0)

    assert await lease_and_generate(pool, model(), "again") == "again "

    assert unloading.done()
    assert has_exited(pid)
    assert pid != worker_pid(pool)


@pytest.mark.parametrize(
    "iterations", [each if each in (0, 2, 5) else pytest.param(each, marks=pytest.mark.long) for each in range(6)]
)
async def test_unloading_around_the_end_of_a_load_stops_the_worker(pool, model, gate, processes, iterations):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready"), "stall"))
    await gate.arrived.wait()
    gate.open()
    block_until((model("slow_ready").path / "loaded").exists)
    await turns(iterations)

    async with asyncio.timeout(60):
        await pool.unload("slow_ready", force=True)

    assert processes.children() == []
    with pytest.raises(ModelUnloaded):
        await request


async def test_an_idle_model_is_unloaded_after_its_keep_alive(make_pool, model, clock):
    pool = make_pool(keep_alive=KeepAlive(60), clock=clock)
    async with running_request(pool, model()) as stalled:
        clock.advance(600)
        assert not stalled.done()
    (worker,) = pool.snapshot()
    clock.advance(59)
    assert [60 - 59] == [worker.idle_left_seconds for worker in pool.snapshot()]

    clock.advance(1)
    await until(lambda: not pool.snapshot())

    assert has_exited(worker.pid)
    (event,) = [event for event in pool.events.history() if event.kind is EventKind.UNLOADED]
    assert ("idle", "the model was idle for 60 s") == (event.cause, event.reason)


# Draining


async def test_draining_an_idle_pool_returns_at_once(pool, model):
    await pool.drain(60)
    await lease_and_generate(pool, model())
    await pool.drain(60)


async def test_draining_waits_for_requests(pool, model, gate):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready"), "a b"))
    await gate.arrived.wait()
    draining = asyncio.create_task(pool.drain(60))
    await turns()
    assert not draining.done()

    gate.open()

    await draining
    assert await request == "a b "


async def test_draining_gives_up_after_the_grace_period(pool, model):
    async with running_request(pool, model()) as stalled:
        async with asyncio.timeout(60):
            await pool.drain(0.05)

        assert not stalled.done()


async def test_draining_ends_when_the_last_client_disconnects(pool, model):
    async with running_request(pool, model()) as stalled:
        draining = asyncio.create_task(pool.drain(60))
        await turns()

        stalled.cancel()

        async with asyncio.timeout(60):
            await draining


async def test_draining_ends_when_the_last_waiting_client_disconnects(pool, model, gate):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()
    draining = asyncio.create_task(pool.drain(60))
    await turns()

    request.cancel()

    async with asyncio.timeout(60):
        await draining


async def test_draining_ends_when_the_last_worker_crashes(pool, model):
    async with running_request(pool, model()) as stalled:
        draining = asyncio.create_task(pool.drain(60))
        await turns()

        os.kill(worker_pid(pool), signal.SIGKILL)

        async with asyncio.timeout(60):
            await draining
        with pytest.raises(WorkerCrashed):
            await stalled


# Closing


async def test_closing_stops_every_process_and_fails_running_requests(pool, model, processes):
    async with running_request(pool, model(name="One")) as one, running_request(pool, model(name="Two")) as two:
        assert len(processes.children()) == 2

        await pool.close()

        assert processes.children() == []
        assert pool.snapshot() == []
        for stalled in (one, two):
            with pytest.raises(ShuttingDown):
                await stalled


async def test_closing_fails_requests_that_wait_for_a_load(pool, model, gate, processes):
    requests = [asyncio.create_task(lease_and_generate(pool, model("slow_ready"))) for _ in range(2)]
    await gate.arrived.wait()

    await pool.close()

    assert processes.children() == []
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [ShuttingDown] * 2 == [type(result) for result in results]


async def test_closing_during_an_unload_waits_for_it(make_pool, model, processes):
    pool = make_pool(stop_grace=0.1)
    await lease_and_generate(pool, model("hang_on_stop"))
    unloading = asyncio.create_task(pool.unload("hang_on_stop"))
    await asyncio.sleep(0)

    await pool.close()

    await unloading
    assert processes.children() == []


async def test_closing_after_a_cancelled_lease_stops_its_load(pool, model, gate, processes):
    request = asyncio.create_task(lease_and_generate(pool, model("slow_ready")))
    await gate.arrived.wait()
    request.cancel()
    await asyncio.wait({request})

    await pool.close()

    assert processes.children() == []


async def test_a_closed_pool_rejects_leases_and_can_be_closed_again(pool, model, processes):
    await lease_and_generate(pool, model())
    await pool.close()

    with pytest.raises(ShuttingDown):
        await lease_and_generate(pool, model())

    await pool.close()
    assert processes.children() == []
