"""Several orders as if they were one."""

import asyncio
import contextlib

import pytest

from osaurusd.errors import QueueFull
from osaurusd.inference.events import Completed, Delta, Finished
from osaurusd.protocols.openai import batch
from tests.osaurusd.pool.asking import collect, order, turns, until


class Worker:
    """Answers each order with one word once `go` is set, or fails those that say so."""

    def __init__(self):
        self.go = asyncio.Event()
        self.running = 0
        self.most = 0
        self.parts = []

    async def generate(self, order):
        self.running += 1
        self.most = max(self.most, self.running)
        self.parts.append(order.part)
        try:
            await self.go.wait()
            text = order.prompt.messages[0].content
            if text == "fail":
                raise QueueFull("no more")
            for index in range(order.n):
                yield Delta(id=1, index=index, text=text)
                yield Finished(id=1, index=index, reason="length")
            yield Completed(id=1, prompt_tokens=4, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
        finally:
            self.running -= 1


@pytest.fixture
def worker():
    return Worker()


async def test_answers_are_numbered_through_and_counts_summed(worker):
    worker.go.set()
    *events, done = await collect(batch.run(worker, [order("a", n=2), order("b", n=2)]))

    texts = {event.index: event.text for event in events if isinstance(event, Delta)}
    assert {0: "a", 1: "a", 2: "b", 3: "b"} == texts
    assert [0, 1, 2, 3] == sorted(event.index for event in events if isinstance(event, Finished))
    assert Completed(id=0, prompt_tokens=8, completion_tokens=6, cached_tokens=4, reasoning_tokens=2) == done


async def test_one_order_is_its_own_events(worker):
    worker.go.set()
    expected = await collect(worker.generate(order("a", n=2)))
    assert expected == await collect(batch.run(worker, [order("a", n=2)]))


async def test_only_so_many_run_at_a_time_and_each_gets_its_turn(worker):
    answering = asyncio.create_task(collect(batch.run(worker, [order("a")] * 50)))
    await until(lambda: worker.running == batch.AT_ONCE)
    await turns()
    worker.go.set()

    events = await answering
    assert batch.AT_ONCE == worker.most
    assert [*range(50)] == sorted(event.index for event in events if isinstance(event, Delta))


async def test_only_the_first_order_asks_whether_there_is_room_in_the_queue(worker):
    worker.go.set()
    await collect(batch.run(worker, [order("a")] * 20))

    assert [False, *[True] * 19] == worker.parts


async def test_one_failure_ends_all(worker):
    answering = asyncio.create_task(collect(batch.run(worker, [order(text) for text in ("a", "fail", "fail", "a")])))
    await until(lambda: worker.running == 4)
    worker.go.set()

    with pytest.raises(QueueFull):
        await answering
    assert 0 == worker.running


@pytest.mark.parametrize("count", [1, 3])
async def test_a_consumer_that_is_cancelled_ends_all(worker, count):
    answering = asyncio.create_task(collect(batch.run(worker, [order("a")] * count)))
    await until(lambda: worker.running == count)

    answering.cancel()

    with pytest.raises(asyncio.CancelledError):
        await answering
    assert 0 == worker.running


async def test_closing_the_iterator_ends_all(worker):
    worker.go.set()
    async with contextlib.aclosing(batch.run(worker, [order("a")] * 3)) as events:
        await anext(events)
        assert 3 == worker.running
    assert 0 == worker.running
