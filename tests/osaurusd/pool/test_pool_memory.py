"""The memory budget, keep-alive, pins and the standby worker in a pool of fake workers."""

import asyncio
import json
import os
import signal

import pytest
import structlog.testing
from msgspec.structs import replace

from osaurusd.errors import Busy, InsufficientMemory
from osaurusd.models.record import MemoryEstimate
from osaurusd.pool.config import KeepAlive, PoolConfig, WorkerLimits
from osaurusd.pool.placement import Standby
from osaurusd.pool.state import SchedulerConfig
from osaurusd.rpc.process import Launch
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.residency import EventKind
from tests.osaurusd.pool.helpers import COMMAND, has_exited, lease_and_generate, running_request, turns, until


@pytest.fixture
def sized(model):
    """Builds models whose workers report that they need this many bytes."""

    def sized(name, nbytes):
        record = model(name=name)
        (record.path / "serving_bytes").write_text(str(nbytes))
        return record

    return sized


def states(pool):
    return {worker.key: worker.state.value for worker in pool.snapshot()}


def published(pool, *kinds):
    return [event for event in pool.events.history() if event.kind in kinds]


# Budget


async def test_the_least_recently_used_idle_model_is_evicted(make_pool, sized):
    pool = make_pool(scheduler=SchedulerConfig(budget_bytes=100))
    one, two, three = (sized(name, 50) for name in ("One", "Two", "Three"))
    for record in (one, two, one):
        await lease_and_generate(pool, record)

    # The files do not contain its size, so it is found to be too large only once it is loaded.
    assert await lease_and_generate(pool, three, "hi") == "hi "
    await until(lambda: len(pool.snapshot()) == 2)

    assert {"One": "ready", "Three": "ready"} == states(pool)
    (event,) = published(pool, EventKind.UNLOADED)
    assert ("two", "memory") == (event.model, event.cause)


async def test_requests_for_two_models_that_do_not_fit_together_are_all_served(make_pool, sized, clock):
    pool = make_pool(scheduler=SchedulerConfig(budget_bytes=100, min_residency_seconds=0), clock=clock)
    one, two = sized("One", 70), sized("Two", 70)
    for record in (one, two):
        await lease_and_generate(pool, record)

    outputs = await asyncio.gather(*(lease_and_generate(pool, (one, two)[n % 2], f"n {n}") for n in range(40)))

    assert [f"n {n} " for n in range(40)] == outputs
    assert len(published(pool, EventKind.LOADED)) < 12


async def test_a_model_without_memory_is_rejected_with_the_usage_and_others_keep_serving(make_pool, sized, clock):
    config = SchedulerConfig(budget_bytes=100, wait_seconds=60, min_residency_seconds=0)
    pool = make_pool(scheduler=config, clock=clock)
    one, two, small = sized("One", 70), sized("Two", 70), sized("Small", 20)
    await lease_and_generate(pool, two)
    async with running_request(pool, one) as stalled:
        waiting = asyncio.create_task(lease_and_generate(pool, two))
        await until(lambda: states(pool).get("Two") == "queued")
        clock.advance(60)
        with pytest.raises(InsufficientMemory, match=r"`One` holds .* in flight"):
            await waiting

        assert await lease_and_generate(pool, small, "a b") == "a b "
        assert await lease_and_generate(pool, one, "a b") == "a b "
        assert not stalled.done()
    assert ["two"] == [event.model for event in published(pool, EventKind.REFUSED)]


async def test_a_model_whose_files_exceed_the_budget_starts_no_process(make_pool, model, processes):
    pool = make_pool(limits=WorkerLimits(dequantize="never"), scheduler=SchedulerConfig(budget_bytes=10**6))
    record = replace(model(), memory=MemoryEstimate(weights_bytes=2 * 10**6, cache_bytes_per_token=10))

    with pytest.raises(InsufficientMemory, match=r"needs 2\.1 MB and can never fit into the memory budget of 1\.0 MB"):
        await pool.load(record)

    assert processes.children() == []


async def test_workers_get_their_new_limits_when_models_load_and_unload(make_pool, sized):
    pool = make_pool(limits=WorkerLimits(prefix_cache_bytes=30), scheduler=SchedulerConfig(budget_bytes=100))
    one, two = sized("One", 20), sized("Two", 20)
    await lease_and_generate(pool, one)
    await lease_and_generate(pool, two)
    await pool.unload("Two")
    await lease_and_generate(pool, one)

    sent = [json.loads(line) for line in (one.path / "limits.jsonl").read_text().splitlines()]

    # Two needs nothing until it reports its size, and holds it until its exit.
    assert [60, 50, 80, 100] == [limits["memory_limit_bytes"] for limits in sent]
    assert [20, 15, 30, 30] == [limits["prefix_cache_bytes"] for limits in sent]
    assert json.loads((one.path / "load.json").read_text())["memory_limit_bytes"] == 100


async def test_a_new_configuration_applies_to_loaded_models(make_pool, sized, clock):
    pool = make_pool(scheduler=SchedulerConfig(budget_bytes=100), clock=clock)
    one, two = sized("One", 40), sized("Two", 40)
    await pool.load(one)
    await pool.load(two)

    launch = Launch(command=COMMAND)
    pool.configure(PoolConfig(launch, scheduler=SchedulerConfig(budget_bytes=70), keep_alive=KeepAlive(30)))
    await until(lambda: states(pool) == {"Two": "ready"})

    assert pool.budget.total_bytes == 70
    assert [(70, 30)] == [(worker.limit_bytes, worker.idle_left_seconds) for worker in pool.snapshot()]


# Keep-alive


async def test_models_have_their_configured_or_requested_keep_alive(make_pool, model, clock):
    pool = make_pool(keep_alive=KeepAlive(60, {"ONE": 3600, "two": 0}), clock=clock)
    one, two, three = model(name="One"), model(name="Two"), model(name="Three")
    await lease_and_generate(pool, one)
    await pool.load(two, 120)
    await pool.load(three, -1)

    left = {worker.key: worker.idle_left_seconds for worker in pool.snapshot()}

    assert {"One": 3600, "Two": 120, "Three": None} == left


# Pins


async def test_a_pinned_model_restarts_after_a_crash(pool, model):
    pool.pin(model())
    worker = await pool.load(model())
    os.kill(worker.pid, signal.SIGKILL)

    await until(lambda: [w.pid for w in pool.snapshot() if w.state == WorkerState.READY] not in ([], [worker.pid]))

    (restarted,) = pool.snapshot()
    assert "SIGKILL" in restarted.last_exit
    assert restarted.pinned
    with pytest.raises(Busy, match="pinned"):
        await pool.unload("echo")
    await pool.unload("echo", force=True)
    assert pool.snapshot() == []


async def test_models_are_loaded_in_the_background_although_one_fails(pool, model):
    pool.load_in_background([model("fail_load"), model()])

    await until(lambda: states(pool) == {"echo": "ready", "fail_load": "failed"})


# The standby worker


@pytest.fixture
def logs():
    """The log lines of the test."""
    with structlog.testing.capture_logs() as logs:
        yield logs


async def standby_process(processes, worker):
    """Return the process that has no model, once it exists."""

    def others():
        return [child for child in processes.children() if child.pid != worker.pid]

    await until(others)
    return others()[0]


async def wait_for_ready_standby(standby):
    """Take the process when it is ready, as a load does."""
    ready = []

    def take():
        if process := standby.take():
            ready.append(process)
        return bool(ready)

    await until(take)
    return ready[0]


async def test_a_standby_worker_saves_spawn_and_imports_of_the_next_load(make_pool, model, processes, logs):
    pool = make_pool(standby_seconds=60)
    first = await pool.load(model(name="One"))
    standby = await standby_process(processes, first)
    await until(lambda: "standby worker ready" in [line["event"] for line in logs])

    second = await pool.load(model(name="Two"))

    assert standby.pid == second.pid
    assert not first.phases.standby
    assert second.phases.standby
    assert second.phases.spawn_seconds == second.phases.import_seconds == 0


async def test_a_standby_worker_expires(make_pool, model, processes, clock):
    pool = make_pool(standby_seconds=60, clock=clock)
    worker = await pool.load(model())
    await standby_process(processes, worker)

    clock.advance(60)

    await until(lambda: [worker.pid] == [child.pid for child in processes.children()])


async def test_an_exited_standby_worker_is_replaced(make_pool, model, processes, logs):
    pool = make_pool(standby_seconds=60)
    worker = await pool.load(model(name="One"))
    standby = await standby_process(processes, worker)
    await until(lambda: "standby worker ready" in [line["event"] for line in logs])
    standby.kill()
    await until(lambda: not standby.is_running() or has_exited(standby.pid))

    assert await lease_and_generate(pool, model(name="Two"), "a b") == "a b "


async def test_without_standby_each_model_has_one_process(pool, model, processes):
    await pool.load(model())
    await turns()

    assert len(processes.children()) == 1


async def test_a_standby_worker_with_an_old_configuration_is_dropped(processes, clock):
    standby = Standby(Launch(command=COMMAND), 60, clock)
    standby.prepare()
    child = await processes.wait_for_child()

    standby.configure(Launch(command=COMMAND, stop_grace=1), 60)

    await until(lambda: not child.is_running())
    assert standby.take() is None
    await standby.close()


async def test_a_standby_worker_can_be_taken_once(processes, clock):
    standby = Standby(Launch(command=COMMAND), 60, clock)
    standby.prepare()
    process = await wait_for_ready_standby(standby)

    assert process.hello is not None
    assert standby.take() is None
    process.kill()
    await process.exited
    await standby.close()
