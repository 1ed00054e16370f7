"""Reaction to the system's memory pressure."""

import pytest
from prometheus_client import CollectorRegistry

from osaurusd.platform.memory import PressureLevel
from osaurusd.pool.pressure import REPEAT_SECONDS, PressureRelief
from osaurusd.wire.residency import EventKind
from tests.osaurusd.pool.helpers import lease_and_generate, received, running_request, until

NORMAL, WARNING, CRITICAL = PressureLevel


class Recorder:
    """Records what a pool would do."""

    def __init__(self):
        self.calls = []

    def drop_caches(self):
        self.calls.append("drop_caches")

    def unload_unused(self):
        self.calls.append("unload_unused")


@pytest.fixture
def run_levels():
    """Run checks with (seconds, level) pairs; return the calls of each check."""

    def run(*steps):
        recorder, levels = Recorder(), [NORMAL, *(level for _, level in steps)]
        relief = PressureRelief(recorder, lambda: levels.pop(0))
        calls = []
        for now, _ in steps:
            recorder.calls = []
            relief.check(now)
            calls.append(recorder.calls)
        return calls

    return run


def test_normal_pressure_changes_nothing(run_levels):
    assert [[], []] == run_levels((0, NORMAL), (1000, NORMAL))


def test_warning_drops_caches_and_critical_also_unloads_idle_models(run_levels):
    both = ["drop_caches", "unload_unused"]

    assert [["drop_caches"], both, []] == run_levels((0, WARNING), (1, CRITICAL), (2, WARNING))


def test_lasting_pressure_is_relieved_again_after_a_while(run_levels):
    end = REPEAT_SECONDS

    assert [["drop_caches"], [], ["drop_caches"]] == run_levels((0, WARNING), (end - 1, WARNING), (end, WARNING))
    assert [["drop_caches"], [], ["drop_caches"]] == run_levels((0, WARNING), (1, NORMAL), (2, WARNING))


async def test_system_without_a_pressure_level_is_not_watched():
    recorder = Recorder()
    relief = PressureRelief(recorder, lambda: None)
    await relief.run()

    assert [] == recorder.calls
    assert [] == list(relief.collect())


def test_level_is_a_metric():
    registry = CollectorRegistry()
    levels = [NORMAL, WARNING]
    relief = PressureRelief(Recorder(), lambda: levels.pop(0))
    registry.register(relief)
    relief.check(0)

    assert 2 == registry.get_sample_value("osaurus_memory_pressure_level")


async def test_workers_drop_their_caches(pool, model):
    record = model()
    await lease_and_generate(pool, record)

    pool.drop_caches()
    await until(lambda: "drop_caches" in received(record))

    (event,) = [event for event in pool.events.history() if event.kind is EventKind.CACHES_DROPPED]
    assert (record.name, "pressure") == (event.model, event.cause)


async def test_standby_worker_is_stopped(make_pool, model, processes):
    pool = make_pool(standby_seconds=1000)
    await lease_and_generate(pool, model())
    await until(lambda: len(processes.children()) == 2)

    pool.drop_caches()
    await until(lambda: len(processes.children()) == 1)


async def test_only_idle_models_without_a_pin_are_unloaded(make_pool, model):
    pool = make_pool()
    idle, busy, pinned = (model(name=name) for name in ("Idle", "Busy", "Pinned"))
    for record in (idle, pinned):
        await lease_and_generate(pool, record)
    pool.pin(pinned)
    async with running_request(pool, busy):
        pool.unload_unused()
        await until(lambda: {worker.key for worker in pool.snapshot()} == {"Busy", "Pinned"})

    (event,) = [event for event in pool.events.history() if event.kind is EventKind.UNLOADED]
    assert ("idle", "pressure", "the system is short of memory") == (event.model, event.cause, event.reason)
    assert "hi " == await lease_and_generate(pool, idle, "hi")
