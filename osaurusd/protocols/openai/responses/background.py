"""Responses that run in the background: clients poll, watch or cancel them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from osaurusd.http.admission import Admission
from osaurusd.http.streaming import SseEvent
from osaurusd.protocols.openai.responses.run import ResponseRun


class BackgroundRun:
    """One response that runs in the background.

    Attributes:
        run: the response.
        task: generates it.
    """

    def __init__(self, run: ResponseRun, admitted: contextlib.ExitStack) -> None:
        self.run = run
        self._events: list[SseEvent] = []
        self._changed = asyncio.Event()
        self._admitted = admitted
        self.task = asyncio.create_task(self._work())
        self.task.add_done_callback(self._finish)

    async def watch(self, after: int = -1) -> AsyncGenerator[SseEvent]:
        """Yield the events whose number is greater than `after`, as they occur."""
        number = after + 1
        while number < len(self._events) or not self.task.done():
            if number < len(self._events):
                yield self._events[number]
                number += 1
            else:
                await self._changed.wait()

    async def cancel(self) -> None:
        """Stop the generation; without effect once the response is final."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _work(self) -> None:
        async with contextlib.aclosing(self.run.stream(report_all_errors=True)) as events:
            async for event in events:
                self._events.append(event)
                self._notify()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._admitted.close()
        if task.cancelled():
            self.run.cancel()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class BackgroundRuns:
    """The responses that run in the background."""

    def __init__(self) -> None:
        self._runs: dict[str, BackgroundRun] = {}

    def start(self, run: ResponseRun, admission: Admission) -> BackgroundRun:
        """Start a response, which counts against `limits.max_requests` until it is final.

        Raises:
            TooManyRequests: the limit is reached.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(admission.admit())
            run.queue()
            background = self._runs[run.response.id] = BackgroundRun(run, stack.pop_all())
        background.task.add_done_callback(lambda _: self._runs.pop(run.response.id, None))
        return background

    def get(self, id_: str) -> BackgroundRun | None:
        return self._runs.get(id_)
