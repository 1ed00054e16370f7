import asyncio
import contextlib

import pytest

from osaurusd.events import MOST_UNREAD, REMEMBERED, Bus
from osaurusd.wire.residency import EventKind


@pytest.fixture
def bus():
    return Bus()


def publish(bus, *models):
    for model in models:
        bus.publish(EventKind.LOADED, model)


async def read(events, count):
    async with asyncio.timeout(5):
        return [(await anext(events)).model for _ in range(count)]


async def test_a_listener_is_told_what_was_and_what_comes_and_misses_nothing_between(bus):
    publish(bus, "a", "b")
    async with contextlib.aclosing(bus.listen()) as events:
        assert ["a"] == await read(events, 1)
        publish(bus, "c")

        assert ["b", "c"] == await read(events, 2)


async def test_every_listener_is_told(bus):
    async with contextlib.aclosing(bus.listen()) as one, contextlib.aclosing(bus.listen()) as two:
        reading = [asyncio.create_task(read(events, 1)) for events in (one, two)]
        await asyncio.sleep(0)
        publish(bus, "a")

        assert [["a"], ["a"]] == await asyncio.gather(*reading)


async def test_a_slow_listener_is_let_go_and_told_no_more_than_it_left_unread(bus):
    publish(bus, "first")
    async with contextlib.aclosing(bus.listen()) as events:
        assert ["first"] == await read(events, 1)
        publish(bus, *map(str, range(3 * MOST_UNREAD)))

        assert [str(n) for n in range(MOST_UNREAD)] == [event.model async for event in events]


async def test_closing_ends_all_listening(bus):
    async with contextlib.aclosing(bus.listen()) as events:
        reading = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        bus.close()

        assert await reading is None


async def test_the_past_is_bounded(bus):
    publish(bus, *map(str, range(REMEMBERED + 5)))

    assert [str(n) for n in range(5, REMEMBERED + 5)] == [event.model for event in bus.past()]
