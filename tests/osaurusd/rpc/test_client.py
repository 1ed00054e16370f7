import asyncio
import contextlib
import socket

import msgspec
import pytest

from osaurusd.errors import ContextLengthExceeded, InternalError, SlowClient, WorkerCrashed
from osaurusd.inference.events import Completed, Delta, Finished, Logprob, TokenLogprob, ToolCallDelta
from osaurusd.rpc import framing, messages
from osaurusd.rpc.client import MAX_BUFFERED_BYTES, WorkerClient
from osaurusd.wire.errors import ErrorCode
from tests.osaurusd.pool.asking import collect, order, until

GONE = WorkerCrashed("the worker is gone")
DELTA = "x" * 65536


def done(id_):
    return Completed(id=id_, prompt_tokens=3, completion_tokens=2)


class Far:
    """The worker's end, played by the test."""

    def __init__(self, reader, writer):
        self._reader = framing.FrameReader(reader, messages.TO_WORKER)
        self.writer = writer

    async def send(self, *frames):
        self.writer.write(framing.encode(frames))
        await self.writer.drain()

    async def receive(self):
        return await self._reader.read()

    async def request(self):
        """The id of the next request, which must come next."""
        frame = await self.receive()
        assert isinstance(frame, messages.Generate)
        return frame.id


@pytest.fixture
async def ends():
    """A client and the other end of its socket."""
    ours, theirs = socket.socketpair()
    reader, writer = await framing.connect(ours.detach())
    far = Far(*await framing.connect(theirs.detach()))
    client = WorkerClient(framing.FrameReader(reader, messages.FROM_WORKER), writer)
    reading = asyncio.create_task(client.read_all())
    yield client, far
    reading.cancel()
    for one in (writer, far.writer):
        one.close()
        with contextlib.suppress(ConnectionError):
            await one.wait_closed()


async def settled(client, far):
    """Returns once the client has dealt with all that was sent to it: frames of one end arrive in order."""
    mark = msgspec.structs.replace(client.stats, active_bytes=client.stats.active_bytes + 1)
    await far.send(mark)
    await until(lambda: client.stats == mark)


async def test_a_request_travels_unchanged_but_for_its_id(ends):
    client, far = ends
    sent = order("tell me", max_tokens=7, stop=["\n"])
    answering = asyncio.create_task(collect(client.generate(sent)))

    received = await far.receive()

    assert msgspec.structs.replace(sent, id=received.id) == received
    await far.send(done(received.id))
    await answering


async def test_all_that_is_said_of_several_answers_arrives_as_it_was_sent(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order(n=2))))
    id_ = await far.request()
    sent = [
        Delta(id=id_, text=""),
        Delta(id=id_, index=1, reasoning="Hm.", text="Paris"),
        Finished(id=id_, index=1, reason="length"),
        Delta(id=id_, calls=[ToolCallDelta(index=0, id="c", name="f", arguments="{}")]),
        Finished(id=id_, reason="tool_calls"),
        done(id_),
    ]

    await far.send(*sent)

    assert sent == await answering


async def test_requests_have_different_ids_and_get_their_own_frames(ends):
    client, far = ends
    first = asyncio.create_task(collect(client.generate(order("one"))))
    one = await far.request()
    second = asyncio.create_task(collect(client.generate(order("two"))))
    two = await far.request()

    await far.send(Delta(id=two, text="b"), Delta(id=one, text="a"), Delta(id=two, text="B"), done(two), done(one))

    assert one != two
    assert [Delta(id=one, text="a"), done(one)] == await first
    assert [Delta(id=two, text="b"), Delta(id=two, text="B"), done(two)] == await second


async def test_an_answer_is_handed_out_while_it_is_being_made(ends):
    client, far = ends
    async with contextlib.aclosing(client.generate(order())) as events:
        first = asyncio.create_task(anext(events))
        id_ = await far.request()
        await far.send(Delta(id=id_, text="a"))

        assert Delta(id=id_, text="a") == await first


async def test_closing_the_iterator_cancels_the_request(ends):
    client, far = ends
    async with contextlib.aclosing(client.generate(order())) as events:
        first = asyncio.create_task(anext(events))
        id_ = await far.request()
        await far.send(Delta(id=id_, text="a"))
        await first

    assert messages.Cancel(id=id_) == await far.receive()


async def test_a_consumer_that_is_cancelled_cancels_the_request(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()

    answering.cancel()

    assert messages.Cancel(id=id_) == await far.receive()


@pytest.mark.parametrize("last", [done(1), messages.Failed(id=1, code=ErrorCode.INTERNAL_ERROR, message="x")])
async def test_a_request_that_has_ended_is_not_cancelled(ends, last):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    await far.request()
    await far.send(last)
    with contextlib.suppress(InternalError):
        await answering

    client.say_goodbye()

    assert messages.Shutdown() == await far.receive()


async def test_frames_of_a_cancelled_request_are_ignored(ends):
    client, far = ends
    cancelled = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()
    cancelled.cancel()
    await far.receive()
    answering = asyncio.create_task(collect(client.generate(order())))
    other = await far.request()

    await far.send(Delta(id=id_, text="late"), done(id_), done(other))

    assert [done(other)] == await answering


async def test_a_failure_is_raised_as_the_error_that_it_was(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()

    await far.send(
        messages.Failed(id=id_, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED, message="9 are too many", param="messages")
    )

    with pytest.raises(ContextLengthExceeded, match="9 are too many") as caught:
        await answering
    assert caught.value.param == "messages"


async def test_what_came_before_a_failure_is_handed_out_first(ends):
    client, far = ends
    events = client.generate(order())
    first = asyncio.create_task(anext(events))
    id_ = await far.request()

    await far.send(Delta(id=id_, text="a"), messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message="x"))

    assert Delta(id=id_, text="a") == await first
    with pytest.raises(InternalError):
        await anext(events)


async def test_the_latest_stats_are_kept(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()

    await far.send(
        messages.Stats(active_bytes=1, cache_bytes=2),
        done(id_),
        messages.Stats(active_bytes=30, cache_bytes=40),
        done(99),
    )
    await answering
    await settled(client, far)

    assert client.stats.cache_bytes == 40


# Slow clients


async def test_a_consumer_far_behind_is_given_up_and_its_request_cancelled_once(ends):
    client, far = ends
    slow = client.generate(order("slow"))
    first = asyncio.create_task(anext(slow))
    id_ = await far.request()
    await far.send(Delta(id=id_, text="a"))
    await first

    await far.send(*[Delta(id=id_, text=DELTA)] * (2 * MAX_BUFFERED_BYTES // len(DELTA)))

    assert messages.Cancel(id=id_) == await far.receive()
    with pytest.raises(SlowClient):
        await collect(slow)
    client.say_goodbye()
    assert messages.Shutdown() == await far.receive()


async def test_a_consumer_far_behind_harms_nobody_else(ends):
    client, far = ends
    slow = client.generate(order("slow"))
    first = asyncio.create_task(anext(slow))
    lost = await far.request()
    await far.send(Delta(id=lost, text="a"))
    await first
    answering = asyncio.create_task(collect(client.generate(order("quick"))))
    id_ = await far.request()

    await far.send(*[Delta(id=lost, text=DELTA)] * (2 * MAX_BUFFERED_BYTES // len(DELTA)))
    await far.send(Delta(id=id_, text="b"), done(id_))

    assert [Delta(id=id_, text="b"), done(id_)] == await answering
    with pytest.raises(SlowClient):
        await collect(slow)


async def test_a_long_answer_is_fine_while_it_is_being_read(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()
    count = 4 * MAX_BUFFERED_BYTES // len(DELTA)

    for _ in range(count):
        await far.send(Delta(id=id_, text=DELTA))
        await settled(client, far)
    await far.send(done(id_))

    assert [*[Delta(id=id_, text=DELTA)] * count, done(id_)] == await answering


@pytest.mark.parametrize(
    "delta",
    [
        Delta(id=1, text="恐" * 65536),
        Delta(id=1, reasoning="x" * 2 * 65536),
        Delta(id=1, calls=[ToolCallDelta(index=0, arguments="x" * 65536)] * 2),
        Delta(id=1, tokens=[TokenLogprob(text="a", bytes=[97], top=[Logprob(text="b", bytes=[98])])] * 1024),
    ],
    ids=["bytes and not characters", "reasoning", "calls", "likelihoods"],
)
async def test_the_limit_counts_all_that_a_client_has_not_read(ends, delta):
    client, far = ends
    slow = client.generate(order("slow"))
    first = asyncio.create_task(anext(slow))
    id_ = await far.request()
    await far.send(Delta(id=id_, text="a"))
    await first

    await far.send(*[delta] * (MAX_BUFFERED_BYTES // (2 * 65536) + 1), done(id_))
    await settled(client, far)

    assert 1 == id_
    with pytest.raises(SlowClient):
        await collect(slow)


async def test_a_burst_beyond_the_limit_is_fine_for_a_consumer_that_reads(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()
    burst = [Delta(id=id_, text="x" * 2 * MAX_BUFFERED_BYTES)] * 3 + [Delta(id=id_, text=DELTA)] * 64

    await far.send(*burst, done(id_))

    assert [*burst, done(id_)] == await answering


# A worker that is gone


async def test_a_worker_that_is_gone_fails_all_requests_in_flight(ends):
    client, far = ends
    answering = [asyncio.create_task(collect(client.generate(order()))) for _ in range(3)]
    for _ in answering:
        await far.request()

    client.fail_all(GONE)

    assert [GONE] * 3 == await asyncio.gather(*answering, return_exceptions=True)


async def test_a_request_that_was_complete_is_not_failed_by_what_comes_after(ends):
    client, far = ends
    events = client.generate(order())
    first = asyncio.create_task(anext(events))
    id_ = await far.request()
    await far.send(Delta(id=id_, text="a"), Delta(id=id_, text="b"), done(id_))
    await first
    await settled(client, far)

    client.fail_all(GONE)

    assert [Delta(id=id_, text="b"), done(id_)] == await collect(events)


async def test_a_request_to_a_worker_that_is_gone_fails_at_once(ends):
    client, _ = ends
    client.fail_all(GONE)

    async with asyncio.timeout(2):
        with pytest.raises(WorkerCrashed):
            await collect(client.generate(order()))


async def test_saying_goodbye_to_a_worker_that_is_gone_is_harmless(ends):
    client, far = ends
    client.fail_all(GONE)

    client.say_goodbye()

    assert await far.receive() is None


async def test_reading_ends_when_the_worker_closes_its_end():
    ours, theirs = socket.socketpair()
    reader, writer = await framing.connect(ours.detach())
    client = WorkerClient(framing.FrameReader(reader, messages.FROM_WORKER), writer)
    reading = asyncio.create_task(client.read_all())

    theirs.close()

    assert await reading is None
    writer.close()
    await writer.wait_closed()


async def test_reading_garbage_is_an_error():
    ours, theirs = socket.socketpair()
    reader, writer = await framing.connect(ours.detach())
    client = WorkerClient(framing.FrameReader(reader, messages.FROM_WORKER), writer)

    theirs.sendall(b"\0\0\0\4junk")

    with pytest.raises(framing.FrameError):
        await client.read_all()
    theirs.close()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_frames_that_no_worker_sends_twice_are_ignored(ends):
    client, far = ends
    answering = asyncio.create_task(collect(client.generate(order())))
    id_ = await far.request()

    await far.send(messages.Hello(version="1"), messages.LoadFailed(message="late"), done(id_))

    assert [done(id_)] == await answering
