"""Speaking with one worker: many requests over one stream of frames."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from osaurusd.errors import OsaurusError, SlowClient, from_code
from osaurusd.inference.events import Completed, Delta, Event
from osaurusd.inference.request import GenerationRequest
from osaurusd.pool.meter import Meters, Tally, Timing
from osaurusd.rpc import framing, messages

# What a client has not taken yet, per request. Generation outruns a client only if that one stalls.
MAX_BUFFERED_BYTES = 1024 * 1024

# Roughly what a token with its probability takes in an answer.
LIKELIHOOD_BYTES = 64

# Of the event loop, from an event's arrival until a consumer that merges several requests asks for the next one.
TURNS = 5

_OF_REQUESTS = (messages.Output, messages.Failed)


class _Reply:
    """What a request has got and its consumer has not taken yet."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self._events: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._error: OsaurusError | None = None
        self._arrived = asyncio.Event()
        self.ended = False

    def put(self, event: Event) -> bool:
        """Take an event in; False if the consumer is so far behind that it must be given up.

        One event may be of any size: a consumer that has left nothing unread is not behind.
        """
        size = _size(event)
        if self._events and size and self._bytes + size > MAX_BUFFERED_BYTES:
            return False
        self._bytes += size
        self._events.append((event, size))
        self.ended = isinstance(event, Completed)
        self._arrived.set()
        return True

    @property
    def filling(self) -> bool:
        return self._bytes > MAX_BUFFERED_BYTES // 2

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
        event, size = self._events.popleft()
        self._bytes -= size
        return event


async def _let_take(reply: _Reply) -> None:
    """Give a consumer that may only be waiting for its turn of the loop a few of them; one that is slow has no use."""
    for _ in range(TURNS):
        if not reply.filling or reply.ended:
            return
        await asyncio.sleep(0)


def _size(event: Event) -> int:
    if not isinstance(event, Delta):
        return 0
    size = _bytes(event.text)
    # Most deltas are text and nothing else.
    if event.reasoning:
        size += _bytes(event.reasoning)
    if event.tool_calls:
        size += sum(_bytes(call.arguments) for call in event.tool_calls)
    if event.logprobs:
        size += LIKELIHOOD_BYTES * sum(1 + len(token.top) for token in event.logprobs)
    return size


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class WorkerClient:
    """Sends requests to a worker and hands its frames to whom they belong.

    The reading never waits for a consumer, so that one slow client holds up nobody else.

    `stats` is what the worker said last of its memory, `tally` what it does; `busy` is set while it has requests, and
    `moved_at` is when it was last seen to get on with them, in monotonic seconds. `on_reserved` is told what the worker
    and its requests may grow to.
    """

    def __init__(self, reader: framing.FrameReader[messages.FromWorker], writer: asyncio.StreamWriter) -> None:
        self.tally = Tally("", Meters())
        self.busy = asyncio.Event()
        self.moved_at = time.monotonic()
        self.on_reserved: Callable[[int], None] = lambda _: None
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._gone: OsaurusError | None = None
        self.stats = messages.Stats(active_bytes=0, cache_bytes=0)

    async def generate(self, request: GenerationRequest, *, continuation: bool = False) -> AsyncGenerator[Event]:
        """Deltas, a Finished for each answer, then one Done. Closing the iterator cancels the request.

        Raises:
            OsaurusError: what the worker answered, or that it died.
        """
        if self._gone is not None:
            raise self._gone
        id_ = next(self._ids)
        reply = self._replies[id_] = _Reply(self.tally.begin())
        if not self.busy.is_set():
            self.moved_at = time.monotonic()
            self.busy.set()
        self._send(messages.Generate(id=id_, request=request, continuation=continuation))
        try:
            while True:
                event = await reply.get()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            del self._replies[id_]
            if not self._replies:
                self.busy.clear()
            reply.timing.close()
            if not reply.ended:
                self._send(messages.Cancel(id=id_))

    def limit(self, limits: messages.Limits) -> None:
        """Tell the worker what it may use from now on."""
        self._send(limits)

    def say_goodbye(self) -> None:
        """Ask the worker to end."""
        self._send(messages.Shutdown())

    async def read_all(self) -> None:
        """Hand frames out until the worker closes its end.

        Raises:
            FrameError: the worker sent garbage.
        """
        while (frame := await self._reader.read()) is not None:
            self.moved_at = time.monotonic()
            if isinstance(frame, messages.Stats | messages.Pulse):
                self._take_figures(frame)
            elif isinstance(frame, _OF_REQUESTS) and (reply := self._replies.get(frame.id)):
                self._hand_over(frame, reply)
                await _let_take(reply)

    def fail_all(self, error: OsaurusError) -> None:
        """The worker is gone: every request that is not complete fails with `error`, and so does every later one."""
        self._gone = error
        self._writer.close()
        for reply in self._replies.values():
            if not reply.ended:
                reply.fail(error)

    def _take_figures(self, frame: messages.Stats | messages.Pulse) -> None:
        if isinstance(frame, messages.Stats):
            self.stats = frame
        self.on_reserved(frame.reserved_bytes)

    def _hand_over(self, frame: messages.Output | messages.Failed, reply: _Reply) -> None:
        if reply.ended:
            return
        if isinstance(frame, messages.Failed):
            reply.fail(from_code(frame.code, frame.message, frame.location))
            return
        if isinstance(frame.event, Delta):
            reply.timing.delta(frame.event.index, self.moved_at)
        elif isinstance(frame.event, Completed):
            reply.timing.done(frame.event)
        if not reply.put(frame.event):
            reply.fail(SlowClient(f"the client left more than {MAX_BUFFERED_BYTES} bytes of the answer unread"))
            self._send(messages.Cancel(id=frame.id))

    def _send(self, frame: messages.Frame) -> None:
        # A worker that is gone reads nothing; that it is gone is noticed where its frames are read.
        if not self._writer.is_closing():
            self._writer.write(framing.encode([frame]))
