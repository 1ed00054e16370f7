"""The daemon's side of a worker connection: many requests over one stream of frames."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy
from typing import Any, Protocol, TypeVar

import msgspec

from osaurusd.errors import OsaurusError, SlowClient, from_code
from osaurusd.inference.events import CandidateScores, Completed, Delta, Event
from osaurusd.inference.request import GenerationRequest, ScoringRequest
from osaurusd.inference.retrieval import EmbedRequest, RerankRequest, Scores, Vectors
from osaurusd.log import current_request_id, get_logger
from osaurusd.rpc import framing, messages
from osaurusd.rpc.watchdog import Watchdog
from osaurusd.wire.errors import ErrorCode

log = get_logger(__name__)

MAX_BUFFERED_BYTES = 1024 * 1024
"""Limit per request of output that the consumer has not taken; only a stalled client falls this far behind."""

LOGPROB_BYTES = 64
"""Approximate size of a token's log-probability in a response."""

YIELDS = 5
"""Event-loop iterations until a consumer that merges several requests has taken an event."""

_REQUEST_FRAMES = (messages.Output, messages.Failed)

_AnyEvent = Event | Vectors | Scores | CandidateScores

R = TypeVar("R", Vectors, Scores, CandidateScores)


class RequestMonitor(Protocol):
    """Observes one request."""

    def delta_received(self, index: int, now: float) -> None: ...

    def completed(self, event: Completed) -> None: ...

    def closed(self) -> None:
        """The consumer has closed the event stream, whether complete or not."""


class WorkerListener(Protocol):
    """Observes a worker from the moment its model is loaded."""

    def request_started(self) -> RequestMonitor: ...

    def memory_reserved(self, nbytes: int) -> None:
        """The worker reports what weights and running requests may grow to."""

    def worker_exited(self, error: OsaurusError) -> None:
        """The process has exited; its requests fail after this call, so that retries do not reach it again."""


class _EventBuffer:
    """Events of one request that its consumer has not taken yet.

    Args:
        monitor: observes the request.
        queues: whether the worker reports when it begins to process the request.
    """

    def __init__(self, monitor: RequestMonitor, *, queues: bool) -> None:
        self.monitor = monitor
        self.queued = queues
        # Frames are read by another task, which belongs to no request.
        self.request_id = current_request_id()
        self.ended = False
        self._events: deque[tuple[_AnyEvent, int]] = deque()
        self._bytes = 0
        # Raised as a copy: the traceback of the error itself would refer to this buffer, and keep the whole request
        # until garbage is collected.
        self._error: OsaurusError | None = None
        self._arrived = asyncio.Event()

    def put(self, event: _AnyEvent) -> bool:
        """Append an event; False if the consumer is too far behind.

        An event may have any size as long as no other is buffered.
        """
        self.queued = False
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
        """End with an error after the buffered events."""
        self._error = error
        self.ended = True
        self._arrived.set()

    async def get(self) -> _AnyEvent:
        while not self._events:
            if self._error is not None:
                raise copy(self._error)
            self._arrived.clear()
            await self._arrived.wait()
        event, size = self._events.popleft()
        self._bytes -= size
        return event


async def _yield_to_consumer(buffer: _EventBuffer) -> None:
    """Let a consumer that is ready to run take its events before more are read; a slow one gains nothing."""
    for _ in range(YIELDS):
        if not buffer.filling or buffer.ended:
            return
        await asyncio.sleep(0)


def _size(event: _AnyEvent) -> int:
    if not isinstance(event, Delta):
        return 0
    size = _text_bytes(event.text)
    # Most deltas carry text only.
    if event.reasoning:
        size += _text_bytes(event.reasoning)
    if event.tool_calls:
        size += sum(_text_bytes(call.arguments) for call in event.tool_calls)
    if event.logprobs:
        size += LOGPROB_BYTES * sum(1 + len(token.top) for token in event.logprobs)
    return size


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _with_data(received: framing.FrameWithBlobs[messages.FromWorker]) -> messages.FromWorker:
    """Return a frame whose event has the frame's blob as its data.

    Raises:
        FrameError: the frame is none that carries a blob.
    """
    frame = received.frame
    if not isinstance(frame, messages.Output) or not isinstance(frame.event, Vectors) or len(received.blobs) != 1:
        raise framing.FrameError(f"a {type(frame).__name__} frame has {len(received.blobs)} blobs; expected none")
    return msgspec.structs.replace(frame, event=msgspec.structs.replace(frame.event, data=received.blobs[0]))


class WorkerClient:
    """Sends requests to a worker and routes its frames to their consumers.

    Reading never waits for a consumer, so a slow client cannot delay other requests.

    Attributes:
        stats: the memory figures that the worker reported last.
    """

    def __init__(
        self,
        reader: framing.FrameReader[messages.FromWorker],
        writer: asyncio.StreamWriter,
        watchdog: Watchdog,
        listener: WorkerListener,
    ) -> None:
        self.stats = messages.Stats(active_bytes=0, cache_bytes=0)
        self._reader = reader
        self._writer = writer
        self._watchdog = watchdog
        self._listener = listener
        self._ids = itertools.count(1)
        self._buffers: dict[int, _EventBuffer] = {}
        self._error: OsaurusError | None = None

    @property
    def queued(self) -> int:
        """The number of requests that the worker has not begun to process."""
        return sum(buffer.queued for buffer in self._buffers.values())

    @property
    def running(self) -> int:
        """The number of all other requests. Only requests that generate text count as queued."""
        return len(self._buffers) - self.queued

    def generate(
        self, request: GenerationRequest, *, continuation: bool = False, blobs: list[bytes] | None = None
    ) -> AsyncGenerator[Event]:
        """Yield the events of a request, ending with `Completed`. Closing the iterator cancels the request.

        Args:
            request: its image and audio parts refer to `blobs` by index.
            continuation: see `messages.Generate`.
            blobs: encoded images and audio. The list is emptied when they are sent.

        Raises:
            OsaurusError: the request failed, or the worker exited.
        """
        return self._run(
            lambda id_: messages.Generate(id=id_, request=request, continuation=continuation), blobs=blobs, queues=True
        )

    async def embed(self, request: EmbedRequest) -> tuple[Vectors, Completed]:
        """Embed texts; raises what `generate` raises."""
        return await self._result(lambda id_: messages.Embed(id=id_, request=request), Vectors)

    async def rerank(self, request: RerankRequest) -> tuple[Scores, Completed]:
        """Score documents; raises what `generate` raises."""
        return await self._result(lambda id_: messages.Rerank(id=id_, request=request), Scores)

    async def score(self, request: ScoringRequest) -> tuple[CandidateScores, Completed]:
        """Score candidates; raises what `generate` raises."""
        return await self._result(lambda id_: messages.Score(id=id_, request=request), CandidateScores)

    async def _result(self, build: Callable[[int], messages.Request], kind: type[R]) -> tuple[R, Completed]:
        """Return the one result of a request."""
        async with contextlib.aclosing(self._run(build)) as events:
            result = await anext(events)
            completed = await anext(events)
        assert isinstance(result, kind)
        return result, completed

    async def _run(
        self, build: Callable[[int], messages.Request], blobs: list[bytes] | None = None, *, queues: bool = False
    ) -> AsyncGenerator[Any]:
        """Yield the events of the request that `build` returns for an id."""
        if self._error is not None:
            # A copy, as in `_EventBuffer`.
            raise copy(self._error)
        id_ = next(self._ids)
        buffer = _EventBuffer(self._listener.request_started(), queues=queues)
        if not self._buffers:
            self._watchdog.arm()
        self._buffers[id_] = buffer
        self._send(build(id_), blobs or ())
        if blobs:
            blobs.clear()
        try:
            while True:
                event = await buffer.get()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            del self._buffers[id_]
            if not self._buffers:
                self._watchdog.disarm()
            buffer.monitor.closed()
            if not buffer.ended:
                self._send(messages.Cancel(id=id_))

    def set_limits(self, limits: messages.Limits) -> None:
        """Replace the worker's memory limits."""
        self._send(limits)

    def drop_caches(self) -> None:
        """Make the worker return the memory of its caches to the system."""
        self._send(messages.DropCaches())

    def request_shutdown(self) -> None:
        """Send the worker a shutdown request."""
        self._send(messages.Shutdown())

    async def read_frames(self) -> None:
        """Route frames until the worker closes its end.

        Raises:
            FrameError: the worker sent invalid data.
        """
        while (frame := await self._reader.read_any()) is not None:
            now = self._watchdog.touch()
            if isinstance(frame, framing.FrameWithBlobs):
                frame = _with_data(frame)
            if isinstance(frame, _REQUEST_FRAMES):
                if buffer := self._buffers.get(frame.id):
                    self._deliver(frame, buffer, now)
                    await _yield_to_consumer(buffer)
            elif isinstance(frame, messages.Stats | messages.Pulse):
                if isinstance(frame, messages.Stats):
                    self.stats = frame
                self._listener.memory_reserved(frame.reserved_bytes)

    @property
    def request_ids(self) -> list[str]:
        """The ids of the clients' requests that are incomplete."""
        ids = [buffer.request_id for buffer in self._buffers.values() if not buffer.ended]
        return list(dict.fromkeys(filter(None, ids)))

    def fail_all(self, error: OsaurusError) -> None:
        """Fail every incomplete and every later request with `error`: the worker has exited."""
        self._error = error
        self._watchdog.disarm()
        self._writer.close()
        for buffer in self._buffers.values():
            if not buffer.ended:
                buffer.fail(error)

    def _deliver(self, frame: messages.Output | messages.Failed, buffer: _EventBuffer, now: float) -> None:
        if buffer.ended:
            return
        if isinstance(frame, messages.Failed):
            if frame.code is ErrorCode.INTERNAL_ERROR:
                log.error("request failed in the worker", request_id=buffer.request_id, reason=frame.message)
            buffer.fail(from_code(frame.code, frame.message, frame.location))
            return
        if isinstance(frame.event, Delta):
            buffer.monitor.delta_received(frame.event.index, now)
        elif isinstance(frame.event, Completed):
            buffer.monitor.completed(frame.event)
        if not buffer.put(frame.event):
            buffer.fail(SlowClient(f"the client left more than {MAX_BUFFERED_BYTES} bytes of the response unread"))
            self._send(messages.Cancel(id=frame.id))

    def _send(self, frame: messages.Frame, blobs: Sequence[bytes] = ()) -> None:
        # The reader notices when the worker has exited; frames sent to it until then are lost.
        if self._writer.is_closing():
            return
        self._writer.write(framing.encode_head(frame, blobs) if blobs else framing.encode([frame]))
        for blob in blobs:
            # A view, because the transport slices what it cannot send at once.
            self._writer.write(memoryview(blob))
