"""Responses that run in the background: clients poll, watch or cancel them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from osaurusd.errors import OsaurusError
from osaurusd.http.admission import Admission, Deadline
from osaurusd.http.streaming import SseEvent
from osaurusd.protocols.openai.responses.run import ResponseRun


class BackgroundRun:
    """One response that runs in the background.

    Attributes:
        run: the response.
        owner: who may use it.
        task: generates it.
    """

    def __init__(self, run: ResponseRun, owner: str, deadline: Deadline, held: contextlib.ExitStack) -> None:
        self.run = run
        self.owner = owner
        self._events: list[SseEvent] = []
        self._changed = asyncio.Event()
        self._deadline = deadline
        self._held = held
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
        try:
            async with self._deadline.enforce():
                async for event in self._deadline.items(self.run.stream(report_all_errors=True)):
                    self._add(event)
        except OsaurusError as error:
            self._add(self.run.fail(error))

    def _add(self, event: SseEvent) -> None:
        self._events.append(event)
        self._notify()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._held.close()
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

    def start(self, run: ResponseRun, owner: str, admission: Admission, held: contextlib.ExitStack) -> BackgroundRun:
        """Start a response, to which the limits of requests apply until it is final.

        Args:
            run: the response.
            owner: who may use it.
            admission: counts it as a request.
            held: closed once the response is final.

        Raises:
            TooManyRequests: the limit of requests is reached.
        """
        held.enter_context(admission.admit())
        run.queue()
        deadline = Deadline(admission.limits.request_seconds, asyncio.get_running_loop().time())
        background = self._runs[run.response.id] = BackgroundRun(run, owner, deadline, held.pop_all())
        background.task.add_done_callback(lambda _: self._runs.pop(run.response.id, None))
        return background

    def get(self, id_: str, owner: str) -> BackgroundRun | None:
        """Return the run of a response, unless it is final or has another owner."""
        background = self._runs.get(id_)
        return background if background is not None and background.owner == owner else None
