"""Several prompts of one client request, answered as one event stream."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.inference.events import Completed, Event, Progress, Started, Timings, Usage
from osaurusd.inference.request import GenerationRequest
from osaurusd.rpc.client import WorkerClient

# Enough to fill a decode batch, while leaving room in the worker's queue for requests of other clients.
MAX_CONCURRENT = 16


async def generate_all(client: WorkerClient, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Event]:
    """Merge the events of all requests, and end with one `Completed`. Closing the iterator cancels every request.

    Choices are numbered consecutively: choice `i` of request `k` has index `k * n + i`. Only the first request may be
    rejected because the worker's queue is full; later ones continue what has started.

    Raises:
        OsaurusError: a request failed, and the others were cancelled; `prompt_index` is the number of the request.
    """
    waiting = deque(enumerate(requests))
    completed: list[Completed] = []
    async with contextlib.aclosing(_EventMerger()) as merger:
        while waiting or merger.running:
            while waiting and merger.running < MAX_CONCURRENT:
                number, request = waiting.popleft()
                merger.add(number, client.generate(request, continuation=number > 0))
            for number, event in await merger.next_events():
                match event:
                    case Completed():
                        completed.append(event)
                    case Started() | Progress():
                        yield event
                    case _:
                        yield msgspec.structs.replace(event, index=number * requests[number].n + event.index)
    yield _combine(completed)


class _EventMerger:
    """Waits for the next event of any of several numbered requests."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.Future[Event], tuple[int, AsyncGenerator[Event]]] = {}

    @property
    def running(self) -> int:
        return len(self._pending)

    def add(self, number: int, events: AsyncGenerator[Event]) -> None:
        self._pending[asyncio.ensure_future(anext(events))] = number, events

    async def next_events(self) -> list[tuple[int, Event]]:
        """Return at least one event, each with the number of its request."""
        arrived, _ = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        numbered = [(self._pending[future][0], self._result(future)) for future in arrived]
        for future in arrived:
            number, events = self._pending.pop(future)
            if isinstance(future.result(), Completed):
                await events.aclose()
            else:
                self.add(number, events)
        return numbered

    def _result(self, future: asyncio.Future[Event]) -> Event:
        try:
            return future.result()
        except OsaurusError as error:
            # A copy: when a worker exits, all of its requests fail with the same error object.
            numbered = type(error)(error.message, param=error.param, location=error.location)
            numbered.prompt_index = self._pending[future][0]
            raise numbered from error

    async def aclose(self) -> None:
        """Cancel the requests that are still running."""
        for future in self._pending:
            future.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        for _, events in self._pending.values():
            await events.aclose()


def _combine(completed: list[Completed]) -> Completed:
    """Add up the token counts. The requests run concurrently, so the longest time of each phase counts."""
    usages = [each.usage for each in completed]
    timings = [each.timings for each in completed]
    return Completed(
        usage=Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in Usage.__struct_fields__}),
        timings=Timings(**{name: max(getattr(each, name) for each in timings) for name in Timings.__struct_fields__}),
    )
