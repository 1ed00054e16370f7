"""Requests and body bytes in flight are counted, and deadlines are enforced."""

import asyncio
import contextlib

import pytest

from osaurusd.buffered_bytes import Reservation
from osaurusd.config import Config, Limits
from osaurusd.errors import Draining, ShuttingDown, TimeLimitExceeded, TooManyRequests
from osaurusd.http import admission
from osaurusd.http.admission import Admission, Deadline


def _draining():
    return Draining("draining")


def build_admission(**limits):
    return Admission(lambda: Config(limits=Limits(**limits)))


def test_requests_beyond_the_limit_are_rejected():
    control = build_admission(max_requests=2)
    with control.admit():
        with control.admit():
            with pytest.raises(TooManyRequests, match=r"`limits\.max_requests`"), control.admit():
                pass
            assert control.requests == 2
        with control.admit():
            pass
    assert control.requests == 0


def test_failed_request_is_not_counted_any_more():
    control = build_admission(max_requests=1)
    with pytest.raises(ValueError, match="x"), control.admit():
        raise ValueError("x")
    assert control.requests == 0


async def test_closed_admission_rejects_new_requests_and_finishes_others():
    control = build_admission()
    with control.admit():
        control.close(_draining)
        with pytest.raises(Draining):
            control.check_open()
        unused = asyncio.create_task(control.wait_until_unused())
        await asyncio.sleep(0)
        assert not unused.done()
    async with asyncio.timeout(60):
        await unused
    control.reopen(_draining)
    control.check_open()


def test_admission_that_is_closed_twice_stays_closed_for_the_other_reason():
    control = build_admission()
    control.close(_draining)
    control.close(lambda: ShuttingDown("shutting down"))
    control.reopen(_draining)
    with pytest.raises(ShuttingDown):
        control.check_open()


def test_changed_limit_applies_immediately():
    config = Config(limits=Limits(max_requests=1))
    control = Admission(lambda: config)
    with control.admit():
        config = Config(limits=Limits(max_requests=2))
        with control.admit():
            pass


def test_single_request_may_exceed_the_limit_of_all():
    control = build_admission(max_buffered_bytes=10)
    large, small = Reservation(control.buffered), Reservation(control.buffered)
    large.add(60)
    large.add(40)
    with pytest.raises(TooManyRequests, match=r"`limits\.max_buffered_bytes`"):
        small.add(1)
    small.release()
    large.add(1)
    large.remove(1)
    large.release()
    assert control.buffered.count == 0


def deadline_after(seconds):
    return Deadline(seconds, asyncio.get_running_loop().time())


async def test_block_is_cancelled_at_the_deadline():
    with pytest.raises(TimeLimitExceeded, match=r"`limits\.request_seconds`"):
        async with deadline_after(0.01).enforce():
            await asyncio.Event().wait()


async def test_no_limit_means_no_deadline():
    async with deadline_after(0).enforce():
        await asyncio.sleep(0)


async def test_other_timeouts_are_not_reported_as_the_deadline():
    with pytest.raises(TimeoutError):
        async with deadline_after(100).enforce():
            raise TimeoutError


async def test_items_before_the_deadline_are_passed_on():
    async def numbers():
        yield 1
        yield 2

    deadline = deadline_after(100)
    async with deadline.enforce():
        assert [number async for number in deadline.items(numbers())] == [1, 2]


async def test_items_fail_at_the_deadline_while_the_block_may_still_send_the_error(monkeypatch):
    monkeypatch.setattr(admission, "ERROR_EVENT_SECONDS", 100.0)
    closed = asyncio.Event()

    async def numbers():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    deadline = deadline_after(0.05)
    async with deadline.enforce():
        items = deadline.items(numbers())
        assert await anext(items) == 1
        with pytest.raises(TimeLimitExceeded):
            await anext(items)
        await asyncio.sleep(0)
    assert closed.is_set()


async def test_slow_reader_is_cancelled_shortly_after_the_deadline(monkeypatch):
    monkeypatch.setattr(admission, "ERROR_EVENT_SECONDS", 0.01)

    async def numbers():
        yield 1

    deadline = deadline_after(0.01)

    async def read_slowly():
        async with deadline.enforce(), contextlib.aclosing(deadline.items(numbers())) as items:
            async for _ in items:
                await asyncio.Event().wait()

    with pytest.raises(TimeLimitExceeded):
        await read_slowly()
