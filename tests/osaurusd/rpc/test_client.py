import asyncio
import contextlib
import socket

import msgspec
import pytest
import structlog

from osaurusd.errors import ContextLengthExceeded, InternalError, SlowClient, WorkerCrashed
from osaurusd.inference.events import Completed, Delta, Finished, Logprob, Started, TokenLogprob, ToolCallDelta, Usage
from osaurusd.rpc import framing, messages
from osaurusd.rpc.client import MAX_BUFFERED_BYTES, WorkerClient
from osaurusd.rpc.watchdog import READ_GRACE_SECONDS, Watchdog
from osaurusd.wire.errors import ErrorCode
from tests.osaurusd.pool.helpers import build_request, collect, until

EXITED = WorkerCrashed("the worker exited")
TEXT = "x" * 65536
COMPLETED = Completed(usage=Usage(prompt_tokens=3, completion_tokens=2))


def output(id_, event):
    return messages.Output(id=id_, event=event)


def delta(id_, text):
    return output(id_, Delta(text=text))


def completed(id_):
    return output(id_, COMPLETED)


class Listener:
    """Records what a client reports."""

    def __init__(self):
        self.reported = []

    def request_started(self):
        self.reported.append("started")
        return self

    def delta_received(self, index, now):
        self.reported.append(("delta", index, now))

    def completed(self, event):
        self.reported.append(event)

    def closed(self):
        self.reported.append("closed")

    def memory_reserved(self, nbytes):
        self.reported.append(("reserved", nbytes))

    def worker_exited(self, error):
        raise AssertionError("reported by the worker, not by its client")


class WorkerEnd:
    """The worker's end of the connection, played by the test."""

    def __init__(self, reader, writer):
        self._reader = framing.FrameReader(reader, messages.TO_WORKER)
        self.writer = writer

    async def send(self, *frames):
        self.writer.write(framing.encode(frames))
        await self.writer.drain()

    async def receive(self):
        received = await self._reader.receive()
        return received and received.frame

    async def receive_with_blobs(self):
        return await self._reader.receive()

    async def next_id(self):
        """Return the id of the request that must come next."""
        frame = await self.receive()
        assert isinstance(frame, messages.Generate)
        return frame.id


@pytest.fixture
async def watchdog(clock):
    return Watchdog(10, clock)


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
async def ends(watchdog, listener):
    """A client that reads frames, and the worker's end of its connection."""
    ours, theirs = socket.socketpair()
    reader, writer = await framing.connect(ours.detach())
    worker = WorkerEnd(*await framing.connect(theirs.detach()))
    client = WorkerClient(framing.FrameReader(reader, messages.FROM_WORKER), writer, watchdog, listener)
    reading = asyncio.create_task(client.read_frames())
    yield client, worker
    reading.cancel()
    for one in (writer, worker.writer):
        one.close()
        with contextlib.suppress(ConnectionError):
            await one.wait_closed()


async def processed(client, worker):
    """Wait until the client has processed all frames: a later frame arrives after them."""
    mark = msgspec.structs.replace(client.stats, active_bytes=client.stats.active_bytes + 1)
    await worker.send(mark)
    await until(lambda: client.stats == mark)


@contextlib.asynccontextmanager
async def slow_request(client, worker):
    """Start a request whose consumer takes only the first event; yield its events and id."""
    events = client.generate(build_request("slow"))
    first = asyncio.create_task(anext(events))
    id_ = await worker.next_id()
    await worker.send(delta(id_, "a"))
    await first
    yield events, id_
    await events.aclose()


async def test_a_request_travels_unchanged(ends):
    client, worker = ends
    request = build_request("hello", max_tokens=7, stop=["\n"])
    generating = asyncio.create_task(collect(client.generate(request, continuation=True)))

    frame = await worker.receive()

    assert messages.Generate(id=frame.id, request=request, continuation=True) == frame
    await worker.send(completed(frame.id))
    await generating


async def test_request_is_queued_until_the_worker_begins_it(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()
    assert (1, 0) == (client.queued, client.running)

    await worker.send(output(id_, Started(prompt_tokens=3)))
    await processed(client, worker)
    assert (0, 1) == (client.queued, client.running)

    await worker.send(completed(id_))
    await generating
    assert (0, 0) == (client.queued, client.running)


async def test_lost_and_failed_requests_are_known_by_the_ids_of_their_clients(ends):
    client, worker = ends
    generating = []
    for request_id in ("trace-1", "trace-2", "trace-3"):
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            generating.append(asyncio.create_task(collect(client.generate(build_request()))))
    ids = [await worker.next_id() for _ in generating]
    assert ["trace-1", "trace-2", "trace-3"] == client.request_ids

    failed = messages.Failed(id=ids[1], code=ErrorCode.INTERNAL_ERROR, message="it broke")
    with structlog.testing.capture_logs() as lines:
        await worker.send(completed(ids[0]), failed)
        with pytest.raises(InternalError):
            await generating[1]
    assert ["trace-3"] == client.request_ids
    assert [("request failed in the worker", "trace-2", "it broke")] == [
        (line["event"], line["request_id"], line["reason"]) for line in lines
    ]
    client.fail_all(EXITED)
    with pytest.raises(WorkerCrashed):
        await generating[2]


async def test_blobs_travel_with_their_request_and_are_released_when_they_are_sent(ends):
    client, worker = ends
    blobs = [b"image", b"audio"]
    generating = asyncio.create_task(collect(client.generate(build_request(), blobs=blobs)))

    received = await worker.receive_with_blobs()

    assert ([b"image", b"audio"], []) == (list(received.blobs), blobs)
    await worker.send(completed(received.frame.id))
    await generating


async def test_events_of_all_choices_arrive_in_order(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request(n=2))))
    id_ = await worker.next_id()
    events = [
        Started(prompt_tokens=3, cached_tokens=1),
        Delta(),
        Delta(index=1, reasoning="Hm.", text="Paris"),
        Finished(index=1, reason="length"),
        Delta(tool_calls=[ToolCallDelta(index=0, id="c", name="f", arguments="{}")]),
        Finished(reason="tool_calls"),
        COMPLETED,
    ]

    await worker.send(*[output(id_, event) for event in events])

    assert events == await generating


async def test_concurrent_requests_get_their_own_events(ends):
    client, worker = ends
    first = asyncio.create_task(collect(client.generate(build_request("one"))))
    one = await worker.next_id()
    second = asyncio.create_task(collect(client.generate(build_request("two"))))
    two = await worker.next_id()

    await worker.send(delta(two, "b"), delta(one, "a"), delta(two, "B"), completed(two), completed(one))

    assert one != two
    assert [Delta(text="a"), COMPLETED] == await first
    assert [Delta(text="b"), Delta(text="B"), COMPLETED] == await second


async def test_events_are_available_before_the_request_completes(ends):
    client, worker = ends
    async with contextlib.aclosing(client.generate(build_request())) as events:
        first = asyncio.create_task(anext(events))
        await worker.send(delta(await worker.next_id(), "a"))

        assert Delta(text="a") == await first


# Cancellation


async def test_closing_the_iterator_cancels_the_request(ends):
    client, worker = ends
    async with slow_request(client, worker) as (_, id_):
        pass

    assert messages.Cancel(id=id_) == await worker.receive()


async def test_cancelling_the_consumer_cancels_the_request(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()

    generating.cancel()

    assert messages.Cancel(id=id_) == await worker.receive()


@pytest.mark.parametrize("last", [completed(1), messages.Failed(id=1, code=ErrorCode.INTERNAL_ERROR, message="x")])
async def test_an_ended_request_is_not_cancelled(ends, last):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    await worker.next_id()
    await worker.send(last)
    with contextlib.suppress(InternalError):
        await generating

    client.request_shutdown()

    assert messages.Shutdown() == await worker.receive()


async def test_frames_of_a_cancelled_request_are_ignored(ends):
    client, worker = ends
    cancelled = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()
    cancelled.cancel()
    await worker.receive()
    generating = asyncio.create_task(collect(client.generate(build_request())))
    other = await worker.next_id()

    await worker.send(delta(id_, "late"), completed(id_), completed(other))

    assert [COMPLETED] == await generating


# Failures


async def test_a_failed_request_raises_its_error_with_the_location(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()

    await worker.send(
        messages.Failed(id=id_, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED, message="too long", location=("prompt",))
    )

    with pytest.raises(ContextLengthExceeded, match="too long") as caught:
        await generating
    assert caught.value.location == ("prompt",)
    assert caught.value.param is None


async def test_events_before_a_failure_are_delivered_first(ends):
    client, worker = ends
    events = client.generate(build_request())
    first = asyncio.create_task(anext(events))
    id_ = await worker.next_id()

    await worker.send(delta(id_, "a"), messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message="x"))

    assert Delta(text="a") == await first
    with pytest.raises(InternalError):
        await anext(events)


async def test_running_requests_fail_when_the_worker_exits(ends):
    client, worker = ends
    generating = [asyncio.create_task(collect(client.generate(build_request()))) for _ in range(3)]
    for _ in generating:
        await worker.next_id()

    client.fail_all(EXITED)

    errors = await asyncio.gather(*generating, return_exceptions=True)
    assert [(type(EXITED), EXITED.message)] * 3 == [(type(error), error.message) for error in errors]


async def test_a_completed_request_survives_the_exit_of_the_worker(ends):
    client, worker = ends
    async with slow_request(client, worker) as (events, id_):
        await worker.send(delta(id_, "b"), completed(id_))
        await processed(client, worker)

        client.fail_all(EXITED)

        assert [Delta(text="b"), COMPLETED] == await collect(events)


async def test_a_request_after_the_exit_fails_at_once(ends):
    client, worker = ends
    client.fail_all(EXITED)

    with pytest.raises(WorkerCrashed):
        await collect(client.generate(build_request()))
    client.request_shutdown()
    assert await worker.receive() is None


# Slow clients


async def test_a_request_whose_consumer_falls_too_far_behind_is_cancelled_once(ends):
    client, worker = ends
    async with slow_request(client, worker) as (events, id_):
        await worker.send(*[delta(id_, TEXT)] * (2 * MAX_BUFFERED_BYTES // len(TEXT)))

        assert messages.Cancel(id=id_) == await worker.receive()
        with pytest.raises(SlowClient):
            await collect(events)
        client.request_shutdown()
        assert messages.Shutdown() == await worker.receive()


async def test_a_slow_consumer_does_not_delay_other_requests(ends):
    client, worker = ends
    async with slow_request(client, worker) as (slow, slow_id):
        generating = asyncio.create_task(collect(client.generate(build_request("quick"))))
        id_ = await worker.next_id()

        await worker.send(*[delta(slow_id, TEXT)] * (2 * MAX_BUFFERED_BYTES // len(TEXT)))
        await worker.send(delta(id_, "b"), completed(id_))

        assert [Delta(text="b"), COMPLETED] == await generating
        with pytest.raises(SlowClient):
            await collect(slow)


async def test_a_long_response_is_delivered_while_it_is_read(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()
    count = 4 * MAX_BUFFERED_BYTES // len(TEXT)

    for _ in range(count):
        await worker.send(delta(id_, TEXT))
        await processed(client, worker)
    await worker.send(completed(id_))

    assert [*[Delta(text=TEXT)] * count, COMPLETED] == await generating


async def test_a_burst_over_the_limit_reaches_a_consumer_that_reads(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()
    burst = [Delta(text="x" * 2 * MAX_BUFFERED_BYTES)] * 3 + [Delta(text=TEXT)] * 64

    await worker.send(*[output(id_, event) for event in burst], completed(id_))

    assert [*burst, COMPLETED] == await generating


@pytest.mark.parametrize(
    "event",
    [
        Delta(text="恐" * 65536),
        Delta(reasoning="x" * 2 * 65536),
        Delta(tool_calls=[ToolCallDelta(index=0, arguments="x" * 65536)] * 2),
        Delta(logprobs=[TokenLogprob(text="a", bytes=[97], top=[Logprob(text="b", bytes=[98])])] * 1024),
    ],
    ids=["bytes, not characters", "reasoning", "tool calls", "logprobs"],
)
async def test_the_buffer_limit_counts_every_part_of_a_delta(ends, event):
    client, worker = ends
    async with slow_request(client, worker) as (events, id_):
        count = MAX_BUFFERED_BYTES // (2 * 65536) + 1
        await worker.send(*[output(id_, event)] * count, completed(id_))
        await processed(client, worker)

        with pytest.raises(SlowClient):
            await collect(events)


# What is observed


async def test_the_listener_follows_requests_and_memory(ends, listener, clock):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()

    await worker.send(output(id_, Delta(index=3)), messages.Pulse(progress=1, reserved_bytes=70), completed(id_))
    await generating

    assert ["started", ("delta", 3, clock.now), ("reserved", 70), COMPLETED, "closed"] == listener.reported


async def test_the_latest_stats_are_kept(ends):
    client, worker = ends
    await worker.send(messages.Stats(active_bytes=1, cache_bytes=2), messages.Stats(active_bytes=30, cache_bytes=40))
    await until(lambda: client.stats.active_bytes == 30)

    assert client.stats.cache_bytes == 40


async def test_a_worker_with_requests_and_no_progress_hangs(ends, watchdog, clock):
    client, worker = ends
    async with slow_request(client, worker) as (_, id_):
        clock.advance(9)
        await worker.send(delta(id_, "b"))
        await processed(client, worker)
        clock.advance(9)
        assert not watchdog.hung.is_set()

        clock.advance(1 + READ_GRACE_SECONDS)

        assert watchdog.hung.is_set()


async def test_a_worker_without_requests_does_not_hang(ends, watchdog, clock):
    client, worker = ends
    async with slow_request(client, worker):
        pass

    clock.advance(1000)

    assert not watchdog.hung.is_set()


# Reading


async def read_after(watchdog, listener, data):
    """Read the frames of a worker that sends `data` and closes its end."""
    ours, theirs = socket.socketpair()
    reader, writer = await framing.connect(ours.detach())
    client = WorkerClient(framing.FrameReader(reader, messages.FROM_WORKER), writer, watchdog, listener)
    theirs.sendall(data)
    theirs.close()
    try:
        await client.read_frames()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_reading_ends_when_the_worker_closes_its_end(watchdog, listener):
    await read_after(watchdog, listener, framing.encode([messages.Pulse(progress=1, reserved_bytes=5)]))

    assert [("reserved", 5)] == listener.reported


async def test_invalid_data_is_a_frame_error(watchdog, listener):
    with pytest.raises(framing.FrameError):
        await read_after(watchdog, listener, b"\0\0\0\4\0\0\0\0junk")


async def test_unexpected_messages_are_ignored(ends):
    client, worker = ends
    generating = asyncio.create_task(collect(client.generate(build_request())))
    id_ = await worker.next_id()

    await worker.send(messages.Hello(version="1"), messages.LoadFailed(message="late"), completed(id_))

    assert [COMPLETED] == await generating
