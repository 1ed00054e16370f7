import asyncio
import socket
import threading

import pytest

from osaurusd.inference.events import Delta
from osaurusd.rpc import framing, messages
from osaurusd.worker.outbox import Outbox

SECONDS = 30
CHUNK = "x" * 10_000
MANY = 400  # chunks; more than a socket buffers


def output(id_, text=CHUNK):
    return messages.Output(id=id_, event=Delta(text=text))


@pytest.fixture
async def connection():
    """An outbox and a reader of its frames."""
    ours, theirs = socket.socketpair()
    outbox = Outbox(ours.fileno(), asyncio.get_running_loop())
    reader, writer = await framing.connect(theirs.detach())
    with ours:
        yield outbox, framing.FrameReader(reader, messages.FROM_WORKER)
    outbox.close()
    writer.close()


@pytest.fixture
async def unread():
    """An outbox and a peer socket that is not read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours.fileno(), asyncio.get_running_loop())
        yield outbox, theirs
        outbox.close()


async def read(frames, count):
    async with asyncio.timeout(SECONDS):
        return [await frames.read() for _ in range(count)]


def run_in_threads(*functions):
    """Run each function in its own thread and require all of them to finish."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread is blocked"


async def test_frames_are_sent_without_waiting_for_the_loop(unread):
    outbox, peer = unread

    outbox.send([output(1, "a"), output(1, "b")])

    peer.setblocking(False)
    assert framing.encode([output(1, "a"), output(1, "b")]) == peer.recv(65536)


async def test_sending_to_a_stalled_peer_does_not_block_or_lose_frames(connection):
    outbox, frames = connection

    run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])

    assert [output(at) for at in range(MANY)] == await read(frames, MANY)


async def test_frames_of_two_threads_arrive_complete_and_in_order(connection):
    outbox, frames = connection

    run_in_threads(
        *[lambda id_=id_: [outbox.send([output(id_, f"{at} {CHUNK}")]) for at in range(MANY)] for id_ in (1, 2)]
    )

    received = await read(frames, 2 * MANY)
    for id_ in (1, 2):
        own = [frame for frame in received if frame.id == id_]
        assert [output(id_, f"{at} {CHUNK}") for at in range(MANY)] == own


async def test_frames_sent_together_stay_together(connection):
    outbox, frames = connection

    run_in_threads(*[lambda id_=id_: [outbox.send([output(id_)] * 5) for _ in range(40)] for id_ in (1, 2)])

    received = [frame.id for frame in await read(frames, 400)]
    assert all(len(set(received[at : at + 5])) == 1 for at in range(0, 400, 5))


async def test_a_frame_may_be_larger_than_the_socket_buffer(connection):
    outbox, frames = connection

    outbox.send([output(1, "🦕" * 1_000_000), output(2, "after")])

    assert [output(1, "🦕" * 1_000_000), output(2, "after")] == await read(frames, 2)


async def test_the_loop_stops_watching_the_socket_once_the_backlog_is_flushed(connection):
    """Otherwise it would call the writer forever."""
    outbox, frames = connection
    run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])
    await read(frames, MANY)

    assert not asyncio.get_running_loop().remove_writer(outbox._socket)


async def test_direct_writes_resume_after_the_backlog_is_flushed(connection):
    outbox, frames = connection
    for round_ in range(3):
        run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])
        assert [output(at) for at in range(MANY)] == await read(frames, MANY)

        outbox.send([output(round_, "small")])

        assert [output(round_, "small")] == await read(frames, 1)


async def test_a_closed_peer_is_ignored(unread):
    outbox, peer = unread
    run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])

    peer.close()

    run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])
    await asyncio.sleep(0)
    outbox.send([output(1)])


def test_a_closed_loop_is_ignored():
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    outbox = Outbox(ours.fileno(), loop)
    loop.close()

    with ours, theirs:
        run_in_threads(lambda: [outbox.send([output(at)]) for at in range(MANY)])
        outbox._socket.close()
