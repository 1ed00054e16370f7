"""Speaking with one worker: many requests over one stream of frames."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator

import msgspec

from osaurusd import ipc
from osaurusd.errors import OsaurusError, SlowClient, from_code

Event = ipc.Delta | ipc.Done

# Text that a client has not taken yet, per request. Generation outruns a client only if that one stalls.
MAX_BUFFERED_BYTES = 1024 * 1024


class _Reply:
    """What a request has got and its consumer has not taken yet."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._error: OsaurusError | None = None
        self._arrived = asyncio.Event()
        self.ended = False

    def put(self, event: Event) -> bool:
        """Take an event in; False if the consumer is so far behind that it must be given up."""
        self._bytes += _size(event)
        if self._bytes > MAX_BUFFERED_BYTES:
            return False
        self._events.append(event)
        self.ended = isinstance(event, ipc.Done)
        self._arrived.set()
        return True

    def fail(self, error: OsaurusError) -> None:
        """End with an error, once what came before it has been taken."""
        self._error = error
        self.ended = True
        self._arrived.set()

    async def get(self) -> Event:
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        self._bytes -= _size(event)
        return event


def _size(event: Event) -> int:
    return len(event.text.encode()) if isinstance(event, ipc.Delta) else 0


class WorkerClient:
    """Sends requests to a worker and hands its frames to whom they belong.

    The reading never waits for a consumer, so that one slow client holds up nobody else.
    """

    def __init__(self, reader: ipc.FrameReader[ipc.FromWorker], writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._gone: OsaurusError | None = None
        self.stats = ipc.Stats(active_bytes=0, cache_bytes=0)

    async def generate(self, order: ipc.Generate) -> AsyncGenerator[Event]:
        """Deltas, then one Done. Closing the iterator cancels the request.

        Raises:
            OsaurusError: what the worker answered, or that it died.
        """
        if self._gone is not None:
            raise self._gone
        id_ = next(self._ids)
        reply = self._replies[id_] = _Reply()
        self._send(msgspec.structs.replace(order, id=id_))
        try:
            while True:
                event = await reply.get()
                yield event
                if isinstance(event, ipc.Done):
                    return
        finally:
            del self._replies[id_]
            if not reply.ended:
                self._send(ipc.Cancel(id=id_))

    def say_goodbye(self) -> None:
        """Ask the worker to end."""
        self._send(ipc.Shutdown())

    async def read_all(self) -> None:
        """Hand frames out until the worker closes its end.

        Raises:
            FrameError: the worker sent garbage.
        """
        while (frame := await self._reader.read()) is not None:
            if isinstance(frame, ipc.Stats):
                self.stats = frame
            elif isinstance(frame, ipc.Delta | ipc.Done | ipc.Failed) and (reply := self._replies.get(frame.id)):
                self._hand_over(frame, reply)

    def fail_all(self, error: OsaurusError) -> None:
        """The worker is gone: every request that is not complete fails with `error`, and so does every later one."""
        self._gone = error
        self._writer.close()
        for reply in self._replies.values():
            if not reply.ended:
                reply.fail(error)

    def _hand_over(self, frame: Event | ipc.Failed, reply: _Reply) -> None:
        if reply.ended:
            return
        if isinstance(frame, ipc.Failed):
            reply.fail(from_code(frame.code, frame.message, frame.param))
        elif not reply.put(frame):
            reply.fail(SlowClient(f"the client left more than {MAX_BUFFERED_BYTES} bytes of the answer unread"))
            self._send(ipc.Cancel(id=frame.id))

    def _send(self, frame: ipc.Frame) -> None:
        # A worker that is gone reads nothing; that it is gone is noticed where its frames are read.
        if not self._writer.is_closing():
            self._writer.write(ipc.encode([frame]))
