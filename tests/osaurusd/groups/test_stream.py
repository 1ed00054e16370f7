"""The control stream between daemons, over a link that tests cut."""

import asyncio

import pytest
from aiohttp import WSMessage, WSMsgType

from osaurusd.groups import stream
from osaurusd.groups.stream import ControlStream
from osaurusd.wire.groups import TO_FOLLOWER, TO_LEADER, RankExited, StopRank
from tests.osaurusd.groups.network import Link
from tests.osaurusd.pool.helpers import FakeClock, turns

TIMEOUT = 30


class End:
    """One end of a stream: what it has received, and why it ended."""

    def __init__(self, socket, decoder, clock):
        self.received = []
        self.stream = ControlStream(socket, decoder, timeout=TIMEOUT, clock=clock)
        self.running = asyncio.create_task(self.stream.run(self._handle))

    async def _handle(self, message):
        self.received.append(message)


@pytest.fixture
async def clock():
    return FakeClock()


@pytest.fixture
async def link():
    return Link()


@pytest.fixture
async def ends(link, clock):
    """The leader's and the follower's end."""
    ends = End(link.ends[0], TO_LEADER, clock), End(link.ends[1], TO_FOLLOWER, clock)
    await turns()
    yield ends
    for end in ends:
        end.running.cancel()
    await asyncio.gather(*(end.running for end in ends), return_exceptions=True)


async def pass_seconds(clock, seconds):
    for _ in range(seconds):
        clock.advance(1)
        await turns(20)


async def test_messages_and_frames_arrive_in_order(ends):
    leader, follower = ends
    leader.stream.send_frames(b"plan 1")
    leader.stream.send(StopRank())
    leader.stream.send_frames(b"plan 2")
    follower.stream.send(RankExited(message="done"))
    await leader.stream.flush()
    await turns()
    assert follower.received == [b"plan 1", StopRank(), b"plan 2"]
    assert leader.received == [RankExited(message="done")]
    assert leader.stream.sent_bytes > len("plan 1") + len("plan 2")


async def test_idle_stream_stays_open_and_its_round_trip_is_measured(ends, clock):
    await pass_seconds(clock, 10 * TIMEOUT)
    assert not any(end.running.done() for end in ends)
    assert ends[0].stream.round_trip_seconds == 0


async def test_cut_shorter_than_the_timeout_loses_nothing(ends, link, clock):
    leader, follower = ends
    link.is_cut = True
    leader.stream.send(StopRank())
    await pass_seconds(clock, TIMEOUT - 6)
    link.heal()
    await pass_seconds(clock, TIMEOUT - 6)
    assert follower.received == [StopRank()]
    assert not any(end.running.done() for end in ends)


async def test_longer_cut_ends_both_sides(ends, link, clock):
    link.is_cut = True
    await pass_seconds(clock, TIMEOUT + 2)
    for end in ends:
        assert "nothing arrived for 30 s" in await end.running


async def test_closed_connection_ends_both_sides_at_once(ends, link):
    link.reset()
    for end in ends:
        assert await end.running == "the connection was closed"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type":"start"}', '{"type":"unknown"}', "[" * 10_000])
async def test_invalid_message_ends_the_stream(ends, link, text):
    link.ends[1].incoming.put_nowait(WSMessage(WSMsgType.TEXT, text, None))
    assert (await ends[1].running).startswith("it sent an invalid message")


async def test_peer_that_reads_nothing_is_lost_at_a_limit(link, clock, monkeypatch):
    monkeypatch.setattr(stream, "MAX_UNSENT_BYTES", 1000)
    blocked = asyncio.Event()

    async def send_bytes(_):
        await blocked.wait()

    link.ends[0].send_bytes = send_bytes
    end = End(link.ends[0], TO_LEADER, clock)
    for _ in range(11):
        end.stream.send_frames(bytes(100))
    assert "left more than 1000 bytes unread" in await end.running


async def test_closing_does_not_wait_long_for_a_peer_that_is_gone(monkeypatch):
    monkeypatch.setattr(stream, "CLOSE_SECONDS", 0.01)

    class Stuck:
        async def close(self):
            await asyncio.Event().wait()

    await stream.close(Stuck())
