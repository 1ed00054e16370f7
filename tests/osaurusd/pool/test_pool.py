import asyncio
import os
import signal
import time

import pytest

from osaurusd.errors import Busy, LoadFailed, ModelUnloaded, ShuttingDown, SlowClient, VersionMismatch, WorkerCrashed
from osaurusd.pool.resident import Rules
from osaurusd.pool.shares import Share
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.pool.asking import (
    ask,
    ask_model,
    begun,
    block_until,
    collect,
    has_ended,
    is_gone,
    order,
    received,
    turns,
    until,
)


def pid_of(pool):
    """The process of the only worker."""
    (report,) = pool.report()
    return report.pid


# Leases


async def test_a_lease_loads_the_model_and_answers(pool, model):
    assert await ask_model(pool, model(), "the capital is Paris") == "the capital is Paris "


async def test_the_next_lease_uses_the_same_worker(pool, model, traces):
    await ask_model(pool, model())
    pid = pid_of(pool)

    await ask_model(pool, model())

    assert pid == pid_of(pool)
    assert received(model()) == ["load", "generate", "generate"]
    assert len(traces.children()) == 1


async def test_concurrent_first_leases_start_one_process(pool, model, gate, traces):
    asking = [asyncio.create_task(ask_model(pool, model("slow_ready"), f"number {n}")) for n in range(5)]
    await gate.arrived.wait()
    assert len(traces.children()) == 1
    assert [(5, 0)] == [(report.waiting, report.in_flight) for report in pool.report()]

    gate.open()

    assert [f"number {n} " for n in range(5)] == await asyncio.gather(*asking)
    assert len(traces.children()) == 1
    assert received(model("slow_ready")).count("load") == 1


async def test_requests_to_one_worker_run_side_by_side(pool, model):
    async with begun(pool, model(), "stall") as stalled:
        assert await ask_model(pool, model(), "a b c") == "a b c "
        assert not stalled.done()


async def test_models_have_workers_of_their_own(pool, model, traces):
    one, two = model(name="One"), model(name="Two")

    answers = await asyncio.gather(ask_model(pool, one, "1"), ask_model(pool, two, "2"))

    assert answers == ["1 ", "2 "]
    assert {report.key for report in pool.report()} == {"One", "Two"}
    assert len(traces.children()) == 2


async def test_a_client_that_hangs_up_reaches_the_worker_as_a_cancel(pool, model):
    async with begun(pool, model()) as stalled:
        stalled.cancel()
        await asyncio.wait({stalled})
        await ask_model(pool, model())

    assert received(model()) == ["load", "generate", "cancel", "generate"]


async def test_a_flood_that_nobody_reads_harms_nobody_else(pool, model):
    async with pool.lease(model()) as client:
        flood = client.generate(order("flood"))
        await anext(flood)

        assert await ask_model(pool, model(), "a b c") == "a b c "

        with pytest.raises(SlowClient):
            await collect(flood)
        await ask(client)
    assert "cancel" in received(model())


async def test_the_worker_is_told_its_share(make_pool, model):
    share = Share(dequantize="never", cache_limit_bytes=678)
    pool = make_pool(share, rules=Rules(budget_bytes=12345))

    await ask_model(pool, model())

    told = (model().path / "load.json").read_text()
    assert '"path":' in told
    for part in (
        '"dequantize":"never"',
        '"memory_limit_bytes":12345',
        '"cache_limit_bytes":678',
        '"context_length":512',
    ):
        assert part in told


# Reports


async def test_a_report_follows_a_worker_through_its_life(pool, model, gate):
    assert pool.report() == []
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()

    (starting,) = pool.report()
    gate.open()
    await asking
    (idle,) = pool.report()
    async with pool.lease(model("slow_ready")):
        (busy,) = pool.report()
    unloading = asyncio.create_task(pool.unload("slow_ready"))
    await asyncio.sleep(0)
    (stopping,) = pool.report()
    await unloading

    assert (WorkerState.STARTING, None, None, 0, 1) == (
        starting.state,
        starting.pid,
        starting.device,
        starting.mlx_bytes,
        starting.waiting,
    )
    assert (WorkerState.READY, "fake", 1234, 0, 0) == (
        idle.state,
        idle.device,
        idle.mlx_bytes,
        idle.in_flight,
        idle.waiting,
    )
    assert idle.load_seconds > 0
    assert 0 <= idle.idle_seconds < 60
    assert (WorkerState.READY, 1, None) == (busy.state, busy.in_flight, busy.idle_seconds)
    assert (WorkerState.STOPPING, idle.pid) == (stopping.state, stopping.pid)
    assert pool.report() == []


# Failing loads


async def test_a_load_that_fails_is_raised_in_every_waiting_lease(pool, model):
    outcomes = await asyncio.gather(*[ask_model(pool, model("refuse_load")) for _ in range(3)], return_exceptions=True)

    assert [LoadFailed] * 3 == [type(outcome) for outcome in outcomes]
    assert "the weights are not there" in outcomes[0].message
    (report,) = pool.report()
    assert (WorkerState.FAILED, outcomes[0].message) == (report.state, report.last_exit)


async def test_a_load_that_failed_is_tried_again_by_the_next_lease(pool, model):
    for _ in range(2):
        with pytest.raises(LoadFailed):
            await ask_model(pool, model("refuse_load"))

    assert received(model("refuse_load")) == ["load", "load"]


async def test_a_load_that_takes_too_long_is_ended(make_pool, model, gate, traces):
    pool = make_pool(load_timeout=1)

    with pytest.raises(LoadFailed, match=r"longer than 1 s \(`worker.load_timeout_seconds`\)"):
        await ask_model(pool, model("slow_ready"))

    assert traces.children() == []


async def test_a_worker_of_another_version_is_refused(pool, model, monkeypatch):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "wrong_version")

    with pytest.raises(VersionMismatch, match="restart"):
        await ask_model(pool, model())


async def test_a_model_that_fails_to_load_harms_no_other(pool, model):
    async with begun(pool, model(name="Good")) as stalled:
        with pytest.raises(LoadFailed):
            await ask_model(pool, model("refuse_load"))

        assert not stalled.done()
        assert await ask_model(pool, model(name="Good"), "a b") == "a b "


async def test_a_worker_that_ends_at_once_is_a_crash(pool, model, monkeypatch, traces):
    monkeypatch.setenv("PYTHON_FAKE_WORKER", "brief")
    asking = asyncio.create_task(ask_model(pool, model()))
    child = await traces.child()

    # Nothing is read before it is dead: the loop finds all that it sent, and its end, in one turn.
    block_until(lambda: has_ended(child))

    async with asyncio.timeout(5):
        with pytest.raises(WorkerCrashed):
            await asking


# Crashes


async def test_a_crash_fails_every_request_in_flight(pool, model):
    async with begun(pool, model()) as stalled:
        with pytest.raises(WorkerCrashed, match=r"\(exit code 7\)") as caught:
            await ask_model(pool, model(), "crash")

        assert caught.value.message.splitlines()[-1] == "the GPU caught fire"
        with pytest.raises(WorkerCrashed, match="the GPU caught fire"):
            await stalled


async def test_garbage_fails_the_request_and_ends_the_process(pool, model):
    async with begun(pool, model()) as stalled:
        pid = pid_of(pool)

        with pytest.raises(WorkerCrashed, match="garbage"):
            await ask_model(pool, model(), "garbage")

        assert is_gone(pid)
        with pytest.raises(WorkerCrashed):
            await stalled


async def test_a_crash_of_one_model_harms_no_other(pool, model):
    async with begun(pool, model(name="Good")) as stalled:
        with pytest.raises(WorkerCrashed):
            await ask_model(pool, model(name="Bad"), "crash")

        assert not stalled.done()


@pytest.mark.parametrize("late", range(3))
async def test_the_next_lease_after_a_crash_starts_a_new_worker(pool, model, late):
    with pytest.raises(WorkerCrashed):
        await ask_model(pool, model(), "crash")
    await turns(late)

    async with asyncio.timeout(10):
        assert await ask_model(pool, model(), "again") == "again "

    assert received(model()) == ["load", "generate", "load", "generate"]


async def test_a_worker_that_dies_idle_is_replaced(pool, model):
    await ask_model(pool, model())
    pid = pid_of(pool)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.report()[0].state == WorkerState.FAILED)
    assert "SIGKILL" in pool.report()[0].last_exit

    assert await ask_model(pool, model(), "again") == "again "
    assert pid != pid_of(pool)


async def test_a_lease_that_outlives_its_worker_fails(pool, model):
    async with pool.lease(model()) as client:
        with pytest.raises(WorkerCrashed):
            await ask(client, "crash")

        async with asyncio.timeout(2):
            with pytest.raises(WorkerCrashed):
                await ask(client)


# Unloading


async def test_unloading_returns_once_the_process_is_gone(pool, model):
    await ask_model(pool, model())
    pid = pid_of(pool)

    await pool.unload("echo")

    assert is_gone(pid)
    assert pool.report() == []


async def test_unloading_what_is_not_loaded_returns_at_once(pool):
    await pool.unload("absent")


async def test_unloading_a_model_in_use_is_refused(pool, model):
    async with begun(pool, model()) as stalled:
        with pytest.raises(Busy, match=r"1 request\(s\)"):
            await pool.unload("echo")

        assert not stalled.done()
        assert await ask_model(pool, model(), "a b") == "a b "


async def test_unloading_by_force_fails_what_runs(pool, model):
    async with begun(pool, model()) as stalled:
        pid = pid_of(pool)

        await pool.unload("echo", force=True)

        assert is_gone(pid)
        with pytest.raises(ModelUnloaded):
            await stalled


async def test_unloading_by_force_fails_those_who_wait_for_the_load(pool, model, gate, traces):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()

    await pool.unload("slow_ready", force=True)

    assert traces.children() == []
    with pytest.raises(ModelUnloaded):
        await asking


async def test_a_worker_that_does_not_listen_is_unloaded_all_the_same(make_pool, model):
    pool = make_pool(stop_grace=0.2)
    await ask_model(pool, model("hang_on_stop"))
    pid = pid_of(pool)

    await pool.unload("hang_on_stop")

    assert is_gone(pid)


async def test_a_lease_while_it_unloads_loads_it_again(pool, model):
    await ask_model(pool, model())
    pid = pid_of(pool)
    unloading = asyncio.create_task(pool.unload("echo"))
    await asyncio.sleep(0)

    answer = await ask_model(pool, model(), "again")

    assert answer == "again "
    assert unloading.done()
    assert is_gone(pid)
    assert pid != pid_of(pool)


@pytest.mark.parametrize("late", range(6))
async def test_unloading_in_any_turn_around_the_end_of_a_load_ends_it(pool, model, gate, traces, late):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready"), "stall"))
    await gate.arrived.wait()
    gate.open()
    block_until((model("slow_ready").path / "loaded").exists)
    await turns(late)

    async with asyncio.timeout(5):
        await pool.unload("slow_ready", force=True)

    assert traces.children() == []
    with pytest.raises(ModelUnloaded):
        await asking


# Going away while it loads


async def test_a_lease_that_is_given_up_while_loading_does_not_stop_the_load(pool, model, gate):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()

    asking.cancel()
    await asyncio.wait({asking})
    gate.open()

    assert await ask_model(pool, model("slow_ready"), "later") == "later "
    assert received(model("slow_ready")).count("load") == 1


async def test_a_lease_that_is_given_up_while_loading_does_not_count_as_use(pool, model, gate):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()

    asking.cancel()
    await asyncio.wait({asking})

    assert [(0, 0)] == [(report.waiting, report.in_flight) for report in pool.report()]
    await pool.unload("slow_ready")


async def test_a_lease_that_is_given_up_while_loading_leaves_the_pool_able_to_close(pool, model, gate, traces):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()

    asking.cancel()
    await asyncio.wait({asking})
    await pool.close()

    assert traces.children() == []


async def test_a_lease_that_is_given_up_in_the_step_of_its_grant_does_not_count_as_use(pool, model):
    await ask_model(pool, model())

    asking = asyncio.create_task(ask_model(pool, model(), "stall"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})

    assert [0] == [report.in_flight for report in pool.report()]
    await pool.unload("echo")


# Draining and closing


async def test_draining_an_idle_pool_returns_at_once(pool, model):
    await pool.drain(60)
    await ask_model(pool, model())
    await pool.drain(60)


async def test_draining_waits_for_what_runs(pool, model, gate):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready"), "a b"))
    await gate.arrived.wait()
    draining = asyncio.create_task(pool.drain(60))
    await turns()
    assert not draining.done()

    gate.open()

    await draining
    assert await asking == "a b "


async def test_draining_gives_up_after_the_grace(pool, model):
    async with begun(pool, model()) as stalled:
        start = time.monotonic()

        await pool.drain(0.2)

        assert 0.2 <= time.monotonic() - start < 5
        assert not stalled.done()


async def test_draining_ends_when_the_last_client_hangs_up(pool, model):
    async with begun(pool, model()) as stalled:
        draining = asyncio.create_task(pool.drain(60))
        await turns()

        stalled.cancel()

        async with asyncio.timeout(5):
            await draining


async def test_draining_ends_when_the_last_client_gives_up_waiting_for_a_load(pool, model, gate):
    asking = asyncio.create_task(ask_model(pool, model("slow_ready")))
    await gate.arrived.wait()
    draining = asyncio.create_task(pool.drain(60))
    await turns()

    asking.cancel()

    async with asyncio.timeout(5):
        await draining


async def test_draining_ends_when_the_last_worker_crashes(pool, model):
    async with begun(pool, model()) as stalled:
        draining = asyncio.create_task(pool.drain(60))
        await turns()

        os.kill(pid_of(pool), signal.SIGKILL)

        async with asyncio.timeout(5):
            await draining
        with pytest.raises(WorkerCrashed):
            await stalled


async def test_closing_ends_every_process_and_fails_what_runs(pool, model, traces):
    async with begun(pool, model(name="One")) as one, begun(pool, model(name="Two")) as two:
        assert len(traces.children()) == 2

        await pool.close()

        assert traces.children() == []
        assert pool.report() == []
        for stalled in (one, two):
            with pytest.raises(ShuttingDown):
                await stalled


async def test_closing_fails_those_who_wait_for_a_load(pool, model, gate, traces):
    asking = [asyncio.create_task(ask_model(pool, model("slow_ready"))) for _ in range(2)]
    await gate.arrived.wait()

    await pool.close()

    assert traces.children() == []
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [ShuttingDown] * 2 == [type(outcome) for outcome in outcomes]


async def test_closing_while_it_unloads_ends_both(make_pool, model, traces):
    pool = make_pool(stop_grace=0.3)
    await ask_model(pool, model("hang_on_stop"))
    unloading = asyncio.create_task(pool.unload("hang_on_stop"))
    await asyncio.sleep(0)

    await pool.close()

    await unloading
    assert traces.children() == []


async def test_a_closed_pool_refuses_leases(pool, model, traces):
    await pool.close()

    with pytest.raises(ShuttingDown):
        await ask_model(pool, model())

    assert traces.children() == []


async def test_closing_twice_is_harmless(pool, model):
    await ask_model(pool, model())

    await pool.close()
    await pool.close()
