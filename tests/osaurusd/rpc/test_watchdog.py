import asyncio

import pytest

from osaurusd.rpc.watchdog import READ_GRACE_SECONDS, Watchdog, sleep
from tests.osaurusd.pool.helpers import turns


@pytest.fixture
async def watchdog(clock):
    return Watchdog(10, clock)


async def test_a_worker_without_progress_counts_as_hung_after_the_limit_and_the_grace(watchdog, clock):
    watchdog.arm()

    clock.advance(10)
    assert not watchdog.hung.is_set()
    clock.advance(READ_GRACE_SECONDS)

    assert watchdog.hung.is_set()


async def test_progress_postpones_the_limit(watchdog, clock):
    watchdog.arm()
    for _ in range(10):
        clock.advance(9)
        watchdog.touch()
    assert not watchdog.hung.is_set()

    clock.advance(10 + READ_GRACE_SECONDS)

    assert watchdog.hung.is_set()


async def test_frames_read_within_the_grace_prove_that_the_daemon_was_suspended(watchdog, clock):
    watchdog.arm()
    clock.advance(10)
    watchdog.touch()

    clock.advance(9)

    assert not watchdog.hung.is_set()


async def test_an_idle_worker_does_not_hang(watchdog, clock):
    watchdog.arm()
    clock.advance(9)
    watchdog.disarm()
    clock.advance(1000)
    assert clock.timers == []

    watchdog.arm()
    clock.advance(9)

    assert not watchdog.hung.is_set()


async def test_guarded_work_returns_its_result(watchdog, clock):
    async def work():
        return 7

    assert await watchdog.guard(work()) == 7
    assert clock.timers == []


async def test_guarded_work_is_cancelled_when_the_worker_hangs(watchdog, clock):
    cancelled = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    guarding = asyncio.create_task(watchdog.guard(work()))
    await turns()
    clock.advance(10 + READ_GRACE_SECONDS)

    assert await guarding is None
    assert cancelled.is_set()


async def test_sleep_follows_the_clock(clock):
    sleeping = asyncio.create_task(sleep(clock, 5))
    await turns()
    clock.advance(4)
    await turns()
    assert not sleeping.done()

    clock.advance(1)

    await sleeping
