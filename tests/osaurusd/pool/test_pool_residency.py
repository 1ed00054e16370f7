"""The pool under a memory budget and over time, with real processes."""

import asyncio
import json
import os
import signal
from dataclasses import replace

import pytest
from osaurusd.pool.resident import Rules
from osaurusd.pool.shares import KeepAlive, Share
from tests.osaurusd.pool.asking import ask_model, begun, is_gone, until

from osaurusd.errors import Busy, InsufficientMemory, WorkerCrashed
from osaurusd.models.record import MemoryEstimate
from osaurusd.platform.power import PowerAssertion
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.residency import EventKind


@pytest.fixture
def sized(model):
    """Makes models that need so many bytes, as their workers say."""

    def sized(name, nbytes):
        record = model(name=name)
        (record.path / "least").write_text(str(nbytes))
        return record

    return sized


def states(pool):
    return {report.key: report.state.value for report in pool.report()}


def happened(pool, *kinds):
    return [(event.kind, event.model) for event in pool.bus.history() if event.kind in kinds]


# Room


async def test_the_least_recently_used_idle_model_makes_room(make_pool, sized):
    pool = make_pool(rules=Rules(budget_bytes=100))
    one, two, three = (sized(name, 50) for name in ("One", "Two", "Three"))
    for record in (one, two, one):
        await ask_model(pool, record)

    # Its files say nothing of its needs, so that it is only found to be too much once it is there.
    assert await ask_model(pool, three, "hi") == "hi "
    await until(lambda: len(pool.report()) == 2)

    assert {"One": "ready", "Three": "ready"} == states(pool)
    (event,) = [event for event in pool.bus.history() if event.kind is EventKind.UNLOADED]
    assert ("two", "room") == (event.model, event.cause)


async def test_requests_for_two_that_fit_one_at_a_time_are_all_answered(make_pool, sized):
    pool = make_pool(rules=Rules(budget_bytes=100, min_residency_seconds=0.05))
    one, two = sized("One", 70), sized("Two", 70)
    for record in (one, two):
        await ask_model(pool, record)

    answers = await asyncio.gather(*(ask_model(pool, (one, two)[n % 2], f"n {n}") for n in range(40)))

    assert [f"n {n} " for n in range(40)] == answers
    assert len(happened(pool, EventKind.LOADED)) < 12


async def test_a_full_budget_is_refused_with_who_holds_what_and_others_serve_on(make_pool, sized):
    pool = make_pool(rules=Rules(budget_bytes=100, wait_seconds=0.2, min_residency_seconds=0))
    one, two, small = sized("One", 70), sized("Two", 70), sized("Small", 20)
    await ask_model(pool, two)
    async with begun(pool, one) as stalled:
        with pytest.raises(InsufficientMemory, match=r"`One` holds .* in flight"):
            await ask_model(pool, two)

        assert await ask_model(pool, small, "a b") == "a b "
        assert await ask_model(pool, one, "a b") == "a b "
        assert not stalled.done()
    assert [(EventKind.REFUSED, "two")] == happened(pool, EventKind.REFUSED)


async def test_a_model_of_which_the_files_say_that_it_can_never_fit_starts_no_process(make_pool, model, traces):
    pool = make_pool(Share(dequantize="never"), rules=Rules(budget_bytes=10**6))
    record = replace(model(), memory=MemoryEstimate(weights_bytes=2 * 10**6, cache_bytes_per_token=10))

    with pytest.raises(InsufficientMemory, match=r"needs 2\.1 MB and can never fit into the memory budget of 1\.0 MB"):
        await pool.load(record)

    assert traces.children() == []


async def test_workers_are_told_their_limits_as_they_change(make_pool, sized):
    pool = make_pool(Share(prefix_cache_bytes=30), rules=Rules(budget_bytes=100))
    one, two = sized("One", 20), sized("Two", 20)
    await ask_model(pool, one)
    await ask_model(pool, two)
    await pool.unload("Two")
    await ask_model(pool, one)

    told = [json.loads(line) for line in (one.path / "limits.jsonl").read_text().splitlines()]

    # First that it is on a GPU; then Two is thought to need nothing until it says otherwise, and while it ends its
    # memory is not free yet.
    assert [100, 60, 50, 80, 100] == [limits["memory_limit_bytes"] for limits in told]
    assert [30, 20, 15, 30, 30] == [limits["prefix_cache_bytes"] for limits in told]
    assert 100 == json.loads((one.path / "load.json").read_text())["memory_limit_bytes"]


# Keep-alive


async def test_a_model_goes_when_it_has_been_idle_for_its_time(make_pool, model):
    pool = make_pool(keep_alive=KeepAlive(0.1))
    async with begun(pool, model()) as stalled:
        await asyncio.sleep(0.15)
        assert not stalled.done()
    (report,) = pool.report()

    await until(lambda: not pool.report())

    assert is_gone(report.pid)
    (event,) = [event for event in pool.bus.history() if event.kind is EventKind.UNLOADED]
    assert ("idle", "the model was not used for 0.1 s") == (event.cause, event.reason)


async def test_a_model_has_a_keep_alive_of_its_own_and_a_load_another(make_pool, model):
    pool = make_pool(keep_alive=KeepAlive(60, {"ONE": 3600, "two": 0}))
    one, two, three = model(name="One"), model(name="Two"), model(name="Three")
    for record in (one, three):
        await ask_model(pool, record)
    await pool.load(two, 120)
    await pool.load(three, -1)

    left = {report.key: report.idle_left_seconds for report in pool.report()}

    assert 3590 < left["One"] <= 3600
    assert 110 < left["Two"] <= 120
    assert left["Three"] is None


# Pins


async def test_a_pinned_model_comes_back_by_itself(pool, model):
    pool.pin(model())
    report = await pool.load(model())
    os.kill(report.pid, signal.SIGKILL)

    await until(lambda: [r.pid for r in pool.report() if r.state == WorkerState.READY] not in ([], [report.pid]))

    (again,) = pool.report()
    assert "SIGKILL" in again.last_exit
    assert again.pinned
    with pytest.raises(Busy, match="pinned"):
        await pool.unload("echo")
    await pool.unload("echo", force=True)
    assert [] == pool.report()


# Deaths and hangs


async def test_a_model_that_dies_again_and_again_is_refused_for_a_while_but_not_to_who_insists(pool, model):
    for _ in range(2):
        with pytest.raises(WorkerCrashed):
            await ask_model(pool, model(), "crash")

    with pytest.raises(WorkerCrashed, match=r"(?s)the GPU caught fire.*in 1 s"):
        await ask_model(pool, model())

    assert (await pool.load(model())).state == WorkerState.READY
    assert await ask_model(pool, model(), "a b") == "a b "


async def test_a_worker_that_makes_no_progress_on_its_requests_is_ended(make_pool, model):
    pool = make_pool(hang=1.5)
    async with begun(pool, model()) as stalled:
        (report,) = pool.report()

        with pytest.raises(WorkerCrashed, match=r"no progress for 1\.5 s on its requests"):
            await stalled

    assert is_gone(report.pid)


async def test_a_stopped_worker_is_found(make_pool, model):
    pool = make_pool(hang=1.5)
    await ask_model(pool, model())
    os.kill(pool.report()[0].pid, signal.SIGSTOP)

    with pytest.raises(WorkerCrashed, match="no progress"):
        await ask_model(pool, model())


async def test_a_worker_that_only_gets_on_slowly_is_left_alone(make_pool, model):
    pool = make_pool(hang=1)

    assert await ask_model(pool, model("plod_on_load"), "plod") == "plod "


async def test_a_worker_that_has_nothing_to_do_does_not_hang(make_pool, model):
    pool = make_pool(hang=1)
    await ask_model(pool, model())
    (report,) = pool.report()

    await asyncio.sleep(1.2)

    assert await ask_model(pool, model(), "a b") == "a b "
    assert report.pid == pool.report()[0].pid


async def test_a_load_without_progress_is_ended(make_pool, model, gate, traces):
    pool = make_pool(hang=0.3)

    with pytest.raises(WorkerCrashed, match=r"no progress for 0\.3 s while it loaded"):
        await ask_model(pool, model("slow_ready"))

    assert traces.children() == []


# The spare worker


async def test_a_spare_worker_takes_spawn_and_imports_off_the_next_load(make_pool, model, traces):
    pool = make_pool(spare_seconds=60)
    first = await pool.load(model(name="One"))
    await until(lambda: len(traces.children()) == 2)
    spare = next(child.pid for child in traces.children() if child.pid != first.pid)
    await until(lambda: pool._spare._bringing_up.done())

    second = await pool.load(model(name="Two"))

    assert spare == second.pid
    assert not first.phases.spare
    assert second.phases.spare
    assert 0 == second.phases.spawn_seconds == second.phases.import_seconds


async def test_a_spare_worker_is_kept_for_a_while_only(make_pool, model, traces):
    pool = make_pool(spare_seconds=0.2)
    report = await pool.load(model())
    await until(lambda: len(traces.children()) == 2)

    await until(lambda: [report.pid] == [child.pid for child in traces.children()])


async def test_a_spare_worker_that_died_is_not_used(make_pool, model, traces):
    pool = make_pool(spare_seconds=60)
    report = await pool.load(model(name="One"))
    await until(lambda: len(traces.children()) == 2)
    await until(lambda: pool._spare._bringing_up.done())
    spare = next(child for child in traces.children() if child.pid != report.pid)
    spare.kill()
    await until(lambda: not spare.is_running() or is_gone(spare.pid))

    assert await ask_model(pool, model(name="Two"), "a b") == "a b "


async def test_without_a_spare_worker_there_is_one_process_for_each_model(pool, model, traces):
    await pool.load(model())

    assert 1 == len(traces.children())


# Sleep


async def test_sleep_is_prevented_while_a_model_serves_and_not_while_it_idles(make_pool, model, traces):
    command = ("sleep", "61")
    pool = make_pool(awake=PowerAssertion(platform="darwin", command=command, delay=0))
    report = await pool.load(model())

    def preventing():
        return [child for child in traces.children() if child.pid != report.pid]

    async with begun(pool, model()):
        await until(preventing)

    await until(lambda: not preventing())
