"""Faults of groups: strangers, ranks that stop, daemons that end. No process is left."""

import asyncio
import contextlib
import os
import signal

from osaurusd.inference.request import GenerationRequest, TokenPrompt
from osaurusd.rpc import messages
from tests.osaurusd.worker.parallel import groups

STRANGER = "does not know the secret of this group"


async def test_a_rank_exits_with_its_daemon_while_it_waits_for_another_rank(llama_folder):
    async with groups.running(llama_folder, "tensor", 3) as group:
        stopped = group.ranks[1].process
        os.kill(stopped.pid, signal.SIGSTOP)
        group.submit(GenerationRequest(prompt=TokenPrompt(tokens=[5, 6, 7])))
        await group.planned(2)

        group.leader.writer.close()

        assert await group.leader.exit() == (0, "")
        os.kill(stopped.pid, signal.SIGKILL)
        code, output = await group.ranks[2].exit()
        assert code == 1
        assert "rank 2 failed at plan" in output
        assert "[ring]" in output


async def test_ranks_with_different_secrets_refuse_each_other(llama_folder):
    async with groups.processes(3) as group:
        replies = await group.load(llama_folder, "tensor", secrets=["one", "one", "other"])
    assert all(isinstance(reply, messages.LoadFailed) and STRANGER in reply.message for reply in replies)


async def test_a_program_that_takes_the_place_of_a_rank_is_refused(qwen2_folder):
    async with groups.processes(2) as group, impostor() as address:
        await group.open(qwen2_folder, "pipeline")
        (own,) = [f"{groups.ADDRESS}:{frame.port}" for frame in [await group.leader.frames.get()]]
        group.leader.send(messages.Connect(addresses=[own, address], secret=groups.SECRET, epoch=1))
        host, port = own.split(":")
        async with connected(host, int(port)):
            reply = await group.leader.frames.get()
    assert isinstance(reply, messages.LoadFailed)
    assert STRANGER in reply.message


async def test_a_rank_that_cannot_join_in_time_exits(qwen2_folder):
    async with groups.processes(2) as group:
        await group.open(qwen2_folder, "pipeline")
        ready = [await rank.frames.get() for rank in group.ranks]
        addresses = [f"{groups.ADDRESS}:{frame.port}" for frame in ready]
        group.ranks[1].send(messages.Connect(addresses=addresses, secret="s", epoch=1, timeout_seconds=0.1))
        code, _ = await group.ranks[1].exit()
    assert code == -signal.SIGALRM


@contextlib.asynccontextmanager
async def impostor():
    """Accept connections, and send what is not the proof of anything; yields the address."""
    server = await asyncio.start_server(_send_zeros, groups.ADDRESS, 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


@contextlib.asynccontextmanager
async def connected(host, port):
    """Connect to a rank as soon as it accepts its neighbor."""
    async with asyncio.timeout(groups.END_SECONDS):
        while True:
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(host, port)
                break
    sending = asyncio.create_task(_send_zeros(reader, writer))
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send_zeros(_, writer):
    with contextlib.suppress(ConnectionError):
        writer.write(bytes(4096))
        await writer.drain()
        await writer.wait_closed()
    writer.close()
