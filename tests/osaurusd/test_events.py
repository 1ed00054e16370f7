import asyncio
import contextlib

import pytest

from osaurusd.events import HISTORY, MAX_UNREAD, EventBus
from osaurusd.wire.residency import EventKind


@pytest.fixture
def bus():
    return EventBus()


def publish(bus, *models):
    for model in models:
        bus.publish(EventKind.LOADED, model)


async def read_models(events, count):
    async with asyncio.timeout(60):
        return [(await anext(events)).model for _ in range(count)]


async def test_a_subscriber_receives_past_and_new_events_without_a_gap(bus):
    publish(bus, "a", "b")
    async with contextlib.aclosing(bus.subscribe()) as events:
        assert ["a"] == await read_models(events, 1)
        publish(bus, "c")

        assert ["b", "c"] == await read_models(events, 2)


async def test_every_subscriber_receives_an_event(bus):
    async with contextlib.aclosing(bus.subscribe()) as first, contextlib.aclosing(bus.subscribe()) as second:
        readers = [asyncio.create_task(read_models(events, 1)) for events in (first, second)]
        await asyncio.sleep(0)
        publish(bus, "a")

        assert [["a"], ["a"]] == await asyncio.gather(*readers)


async def test_a_slow_subscriber_is_disconnected_after_its_unread_events(bus):
    publish(bus, "first")
    async with contextlib.aclosing(bus.subscribe()) as events:
        assert ["first"] == await read_models(events, 1)
        publish(bus, *map(str, range(3 * MAX_UNREAD)))

        assert [str(n) for n in range(MAX_UNREAD)] == [event.model async for event in events]


async def test_closing_the_bus_ends_every_subscription(bus):
    async with contextlib.aclosing(bus.subscribe()) as events:
        reader = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        bus.close()

        assert await reader is None


async def test_the_history_is_bounded(bus):
    publish(bus, *map(str, range(HISTORY + 5)))

    assert [str(n) for n in range(5, HISTORY + 5)] == [event.model for event in bus.history()]
