"""What a host that lends memory accepts from others: their messages are typed by hand here."""

import asyncio
import contextlib
import os
import signal

import msgspec
import pytest
from aiohttp import WSMsgType

from osaurusd.groups import rank
from osaurusd.hosts.registry import Host
from osaurusd.rpc import framing, messages
from osaurusd.wire.groups import TO_LEADER, ConnectRank, RankExited, RankFailed, RankReady, StartRank, StopRank
from osaurusd.wire.placement import Manifest
from tests.osaurusd.groups.network import VERSIONS, cluster
from tests.osaurusd.pool.helpers import has_exited, until

PLAN = framing.encode([messages.Plan(number=1, operations=msgspec.Raw(b"[]"))])
CONNECT = ConnectRank(addresses=["127.0.0.1:5000", "127.0.0.2:5001"], secret="s" * 64)


class Leader:
    """A paired host that sends whatever a test wants."""

    def __init__(self, follower, name="a"):
        host = Host(name=name, url="https://x", certificate="", fingerprint=name, added_at=0)
        self._socket = follower.accept(host)

    async def send(self, message):
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
            await self._socket.send_str(text)

    async def receive(self, *kinds):
        """Return the next message of these kinds; None at the end of the stream."""
        async with asyncio.timeout(30):
            while (received := await self._socket.receive()).type is not WSMsgType.CLOSED:
                if received.type is WSMsgType.TEXT and isinstance(message := TO_LEADER.decode(received.data), kinds):
                    return message
        return None

    async def start(self, **fields):
        await self.send(start(**fields))
        return await self.receive(RankReady, RankFailed)


def start(**fields):
    defaults = {
        "group": "m",
        "epoch": 5,
        "versions": VERSIONS,
        "rank": 1,
        "size": 2,
        "split": "tensor",
        "needs_bytes": 1000,
        "requested_bytes": 1000,
        "manifest": Manifest(model="m", digest="0", files=()),
    }
    return StartRank(**{**defaults, **fields})


@contextlib.asynccontextmanager
async def lending(tmp_path):
    """Run a host that lends memory."""
    async with cluster(tmp_path) as hosts:
        yield hosts.followers[0]


async def test_rank_gets_ready_and_ends_with_a_confirmation(tmp_path):
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        assert await leader.start() == RankReady(address="127.0.0.2", port=5001, lease_bytes=1000)
        pid = follower.pid
        await leader.send(StopRank())
        assert (await leader.receive(RankExited)).message == "the leader has unloaded the model"
        assert has_exited(pid)
        assert follower.pool.budget.used_bytes == 0
        assert await leader.receive() is None


async def test_files_are_in_use_until_the_rank_has_exited(tmp_path):
    async with lending(tmp_path) as follower:
        leader, service = Leader(follower, "studio"), follower.service
        await leader.start()
        pid = follower.pid
        assert service.owners(follower.folder) == ["studio"]
        assert service.owners(tmp_path) == []
        await service.end_users(follower.folder)
        assert has_exited(pid)
        assert (await leader.receive(RankExited)).message == "the host removes its copy of the model"
        assert service.owners(follower.folder) == []


async def test_lease_lasts_until_the_process_of_a_failed_rank_has_exited(tmp_path, monkeypatch):
    terminating, gate, original = asyncio.Event(), asyncio.Event(), rank._terminate

    async def terminate(process):
        terminating.set()
        await gate.wait()
        await original(process)

    monkeypatch.setattr(rank, "_terminate", terminate)
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        await leader.start()
        os.kill(follower.pid, signal.SIGKILL)
        await terminating.wait()
        await leader.send(StopRank())
        await until(lambda: next(iter(follower.service._ranks.values()))._stop_reason)
        assert follower.pool.budget.used_bytes == 1000
        gate.set()
        assert await leader.receive(RankExited)
        assert follower.pool.budget.used_bytes == 0


async def test_rank_that_is_stopped_at_once_confirms_it_after_the_exit_of_its_predecessor(tmp_path):
    async with lending(tmp_path) as follower:
        first, second = Leader(follower), Leader(follower)
        await first.start()
        pid = follower.pid
        await second.send(start(epoch=6))
        await second.send(StopRank())
        assert (await second.receive(RankExited, RankFailed)).message == "the leader has unloaded the model"
        assert has_exited(pid)
        assert await first.receive(RankExited)
        assert await second.receive() is None


@pytest.mark.parametrize("first", [StopRank(), CONNECT, PLAN])
async def test_first_message_must_start_a_rank(tmp_path, first):
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        await leader.send(first)
        assert (await leader.receive(RankFailed)).code == "invalid_request"
        assert follower.service.workers() == []


@pytest.mark.parametrize("text", ["", "{}", '{"type":"start","group":"m"}', '{"type":"exited","message":""}'])
async def test_invalid_message_ends_the_stream(tmp_path, text):
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        await leader.send(text)
        assert await leader.receive(RankReady, RankExited) is None


@pytest.mark.parametrize("epoch", [4, 5])
async def test_earlier_epoch_is_refused_and_the_running_rank_stays(tmp_path, epoch):
    async with lending(tmp_path) as follower:
        await Leader(follower).start()
        pid = follower.pid
        refusal = await Leader(follower).start(epoch=epoch)
        assert (refusal.code, "epoch 5" in refusal.message) == ("busy", True)
        assert follower.pid == pid


async def test_hosts_have_ranks_of_their_own_even_if_their_models_have_the_same_name(tmp_path):
    async with lending(tmp_path) as follower:
        leaders = [Leader(follower, name) for name in ("a", "x")]
        for leader in leaders:
            await leader.start(epoch=9)
        assert [worker.lease.owner for worker in follower.service.workers()] == ["a", "x"]
        await leaders[1].send(StopRank())
        await leaders[1].receive(RankExited)
        assert [worker.lease.owner for worker in follower.service.workers()] == ["a"]


@pytest.mark.parametrize(
    "data",
    [
        framing.encode([messages.Load(path="/etc")]),
        PLAN + framing.encode([messages.Shutdown()]),
        PLAN[:-1],
        b"\xff" * 64,
    ],
    ids=["load", "shutdown", "incomplete", "garbage"],
)
async def test_only_plans_reach_a_rank(tmp_path, data):
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        await leader.start()
        await leader.send(data)
        assert "invalid data" in (await leader.receive(RankExited)).message
        assert (follower.folder / "received").read_text().split() == ["load"]


@pytest.mark.parametrize("address", ["8.8.8.8:5000", "example.com:5000", "127.0.0.1"])
async def test_rank_connects_to_private_addresses_only(tmp_path, address):
    async with lending(tmp_path) as follower:
        leader = Leader(follower)
        await leader.start()
        await leader.send(ConnectRank(addresses=[address, "127.0.0.2:5001"], secret="s" * 64))
        assert (await leader.receive(RankExited)).message
        assert not (follower.folder / "connect.json").exists()


async def test_closing_host_refuses_new_ranks(tmp_path):
    async with lending(tmp_path) as follower:
        follower.service.stop_accepting()
        assert (await Leader(follower).start()).code == "shutting_down"


async def test_leases_of_several_models_share_the_limit_and_leave_memory_for_others(tmp_path):
    async with lending(tmp_path) as follower:
        first = await Leader(follower).start(requested_bytes=3000)
        second = await Leader(follower).start(group="n", requested_bytes=3000)
        third = await Leader(follower).start(group="o")
        assert (first.lease_bytes, second.lease_bytes, third.code) == (3000, 1500, "insufficient_memory")
