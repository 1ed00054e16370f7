"""What happens to models, told to whoever listens, and remembered for those who ask later."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from osaurusd.wire.residency import Event, EventKind

REMEMBERED = 1000
"""Events that one who comes later is still told."""

MOST_UNREAD = 256
"""A listener that leaves more than this unread is let go."""


class Bus:
    """Events go in from one side and to every listener. To publish never waits, however slow they are."""

    def __init__(self) -> None:
        self._past: deque[Event] = deque(maxlen=REMEMBERED)
        self._listeners: set[asyncio.Queue[Event | None]] = set()

    def publish(self, kind: EventKind, model: str, **facts: str | float | int | None) -> None:
        """Tell that something has happened now."""
        event = Event(kind=kind, time=time.time(), model=model, **facts)  # type: ignore[arg-type]
        self._past.append(event)
        for queue in list(self._listeners):
            if queue.qsize() >= MOST_UNREAD:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def past(self) -> list[Event]:
        """What has happened lately, the oldest first."""
        return list(self._past)

    async def listen(self) -> AsyncGenerator[Event]:
        """What has happened and happens from now on; ends with the bus, and for one who reads too slowly."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            for event in self.past():
                yield event
            while (coming := await queue.get()) is not None:
                yield coming
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """End all listening."""
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()
