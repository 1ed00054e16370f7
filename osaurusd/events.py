"""Events of models and of the daemon, published to every subscriber and kept for later subscribers."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from osaurusd.wire.residency import Event, EventKind

HISTORY = 1000
"""Number of past events that a new subscriber receives."""

MAX_UNREAD = 256
"""A subscriber with more unread events than this is disconnected."""


class EventBus:
    """Delivers each event to every subscriber. Publishing never waits for one."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._subscribers: set[asyncio.Queue[Event | None]] = set()

    def publish(self, kind: EventKind, model: str = "", **fields: str | float | int | None) -> None:
        """Publish an event with the current time.

        Args:
            kind, model: what happened to which model, or to the daemon.
            fields: further fields of `wire.residency.Event`.
        """
        event = Event(kind=kind, time=time.time(), model=model, **fields)  # type: ignore[arg-type]  # one type for all
        self._history.append(event)
        for queue in list(self._subscribers):
            if queue.qsize() >= MAX_UNREAD:
                self._subscribers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def history(self) -> list[Event]:
        """Past events, oldest first."""
        return list(self._history)

    async def subscribe(self) -> AsyncGenerator[Event]:
        """Yield past events, then new ones. Ends when the bus is closed or the subscriber reads too slowly."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            for event in self.history():
                yield event
            while (event_or_end := await queue.get()) is not None:
                yield event_or_end
        finally:
            self._subscribers.discard(queue)

    def close(self) -> None:
        """End every subscription."""
        for queue in self._subscribers:
            queue.put_nowait(None)
        self._subscribers.clear()
