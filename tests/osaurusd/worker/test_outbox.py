"""A real socket whose other end is read when the test says so, and not before."""

import asyncio
import socket
import threading

import pytest

from osaurusd.inference.events import Delta
from osaurusd.rpc import framing, messages
from osaurusd.worker.outbox import Outbox

SECONDS = 30
PIECE = "x" * 10_000
MANY = 400  # pieces, which is more than any socket takes unread


def delta(id_, text=PIECE):
    return Delta(id=id_, text=text)


@pytest.fixture
async def line():
    """An outbox, and a reader of what it sends."""
    ours, theirs = socket.socketpair()
    outbox = Outbox(ours.fileno(), asyncio.get_running_loop())
    reader, writer = await framing.connect(theirs.detach())
    with ours:
        yield outbox, framing.FrameReader(reader, messages.FROM_WORKER)
    outbox.close()
    writer.close()


@pytest.fixture
async def deaf():
    """An outbox, and the socket that nobody reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours.fileno(), asyncio.get_running_loop())
        yield outbox, theirs
        outbox.close()


async def read(frames, count):
    async with asyncio.timeout(SECONDS):
        return [await frames.read() for _ in range(count)]


def at_once(*works):
    """Do each in a thread of its own; that they come to an end is what is asked for."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "somebody waits"


async def test_what_is_sent_is_there_before_the_loop_turns(deaf):
    outbox, peer = deaf

    outbox.send([delta(1, "a"), delta(1, "b")])

    peer.setblocking(False)
    assert framing.encode([delta(1, "a"), delta(1, "b")]) == peer.recv(65536)


async def test_nobody_waits_for_a_peer_that_does_not_read_and_nothing_is_lost(line):
    outbox, frames = line

    at_once(lambda: [outbox.send([delta(at)]) for at in range(MANY)])

    assert [delta(at) for at in range(MANY)] == await read(frames, MANY)


async def test_what_two_threads_send_arrives_whole_and_in_the_order_of_each(line):
    outbox, frames = line

    at_once(*[lambda id_=id_: [outbox.send([delta(id_, f"{at} {PIECE}")]) for at in range(MANY)] for id_ in (1, 2)])

    found = await read(frames, 2 * MANY)
    for id_ in (1, 2):
        mine = [frame for frame in found if frame.id == id_]
        assert [delta(id_, f"{at} {PIECE}") for at in range(MANY)] == mine


async def test_frames_sent_together_stay_together(line):
    outbox, frames = line

    at_once(*[lambda id_=id_: [outbox.send([delta(id_)] * 5) for _ in range(40)] for id_ in (1, 2)])

    found = [frame.id for frame in await read(frames, 400)]
    assert all(len(set(found[at : at + 5])) == 1 for at in range(0, 400, 5))


async def test_one_frame_may_be_larger_than_any_buffer(line):
    outbox, frames = line

    outbox.send([delta(1, "🦕" * 1_000_000), delta(2, "after")])

    assert [delta(1, "🦕" * 1_000_000), delta(2, "after")] == await read(frames, 2)


async def test_after_a_pause_it_goes_on_by_itself(line):
    outbox, frames = line
    for round_ in range(3):
        at_once(lambda: [outbox.send([delta(at)]) for at in range(MANY)])
        assert [delta(at) for at in range(MANY)] == await read(frames, MANY)

        outbox.send([delta(round_, "small")])

        assert [delta(round_, "small")] == await read(frames, 1)


async def test_a_peer_that_is_gone_disturbs_nobody(deaf):
    outbox, peer = deaf
    at_once(lambda: [outbox.send([delta(at)]) for at in range(MANY)])

    peer.close()

    at_once(lambda: [outbox.send([delta(at)]) for at in range(MANY)])
    await asyncio.sleep(0)
    outbox.send([delta(1)])


def test_a_loop_that_is_closed_disturbs_nobody():
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    outbox = Outbox(ours.fileno(), loop)
    loop.close()

    with ours, theirs:
        at_once(lambda: [outbox.send([delta(at)]) for at in range(MANY)])
        outbox._socket.close()
