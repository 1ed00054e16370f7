"""Several orders as if they were one."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import msgspec

from osaurusd.inference.events import Completed, Event, Started, Usage
from osaurusd.inference.request import GenerationRequest
from osaurusd.pool.pool import Lease

# Enough to fill a batch, and few enough to leave room in the worker's queue for others.
AT_ONCE = 16


async def run(worker: Lease, orders: Sequence[GenerationRequest]) -> AsyncGenerator[Event]:
    """The events of all orders as they come, and one Done with the sum of their counts.

    The answers are numbered through: answer `i` of the order at `k` has the index `k * n + i`. At most `AT_ONCE`
    orders run at a time. The first failure ends them all; so does closing the iterator. Whether the worker's queue has
    room is asked with the first order only: what has been begun is not given up because others came meanwhile.

    Args:
        worker: who is asked.
        orders: at least one, all with the same `n`.
    """
    if len(orders) == 1:
        async with contextlib.aclosing(worker.generate(orders[0])) as events:
            async for event in events:
                yield event
        return
    waiting = deque(enumerate(orders))
    done: list[Completed] = []
    async with contextlib.aclosing(_Merge()) as merge:
        while waiting or merge.running:
            while waiting and merge.running < AT_ONCE:
                at, order = waiting.popleft()
                merge.add(at * order.n, worker.generate(order, continuation=at > 0))
            for first, event in await merge.next():
                if isinstance(event, Completed):
                    done.append(event)
                else:
                    yield (
                        event
                        if isinstance(event, Started)
                        else msgspec.structs.replace(event, index=first + event.index)
                    )
    yield _sum(done)


class _Merge:
    """Takes the next events of several requests, whichever comes first. Each has a key, given back with its events."""

    def __init__(self) -> None:
        self._next: dict[asyncio.Future[Event], tuple[int, AsyncGenerator[Event]]] = {}

    @property
    def running(self) -> int:
        return len(self._next)

    def add(self, key: int, events: AsyncGenerator[Event]) -> None:
        self._next[asyncio.ensure_future(anext(events))] = key, events

    async def next(self) -> list[tuple[int, Event]]:
        """What has come, at least one event. A request ends with its Done."""
        arrived, _ = await asyncio.wait(self._next, return_when=asyncio.FIRST_COMPLETED)
        found = [(self._next[future][0], future.result()) for future in arrived]
        for future in arrived:
            key, events = self._next.pop(future)
            if isinstance(future.result(), Completed):
                await events.aclose()
            else:
                self.add(key, events)
        return found

    async def aclose(self) -> None:
        """Cancel the requests that still run."""
        for future in self._next:
            future.cancel()
        await asyncio.gather(*self._next, return_exceptions=True)
        for _, events in self._next.values():
            await events.aclose()


def _sum(counts: list[Completed]) -> Completed:
    return Completed(
        usage=Usage(
            prompt_tokens=sum(done.usage.prompt_tokens for done in counts),
            completion_tokens=sum(done.usage.completion_tokens for done in counts),
            cached_tokens=sum(done.usage.cached_tokens for done in counts),
            reasoning_tokens=sum(done.usage.reasoning_tokens for done in counts),
        )
    )
