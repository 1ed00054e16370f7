"""Faults of groups: processes that do not belong to them, ranks that stop, daemons that end. No process is left."""

import asyncio
import contextlib
import os
import signal

from osaurusd.inference.request import GenerationRequest, SamplingParams, TokenPrompt
from osaurusd.rpc import messages
from tests.osaurusd.worker.parallel import groups

UNKNOWN_PEER = "does not know the secret of this group"


async def test_a_rank_exits_with_its_daemon_while_it_waits_for_another_rank(qwen2_folder):
    async with groups.running(qwen2_folder, "pipeline", 2, layers=(2, 2)) as group:
        other = group.ranks[1]
        os.kill(other.process.pid, signal.SIGSTOP)
        request = GenerationRequest(prompt=TokenPrompt(tokens=[5, 6, 7]), sampling=SamplingParams(temperature=0))
        group.submit(request)
        await group.planned(2)

        group.leader.writer.close()

        assert (await group.leader.exit())[0] == 0
        os.kill(other.process.pid, signal.SIGCONT)
        code, output = await other.exit()
        assert code == 1
        assert "rank 1 failed at plan 2: RuntimeError: [ring]" in output


async def test_ranks_with_different_secrets_refuse_each_other(qwen2_folder):
    async with groups.processes(2) as group:
        replies = await group.load(qwen2_folder, "tensor", secrets=["one", "other"])
    assert all(isinstance(reply, messages.LoadFailed) and UNKNOWN_PEER in reply.message for reply in replies)


async def test_a_program_that_takes_the_place_of_a_rank_is_refused(qwen2_folder):
    async with groups.processes(1) as group, impostor() as address:
        await group.open(qwen2_folder, "pipeline", size=2, layers=(2, 2))
        port = (await group.leader.expect(messages.RankReady)).port
        addresses = [f"{groups.ADDRESS}:{port}", address]
        group.leader.send(messages.Connect(addresses=addresses, secret=groups.SECRET, epoch=1))
        async with connected(port):
            reply = await group.leader.expect(messages.LoadFailed)
    assert UNKNOWN_PEER in reply.message


async def test_a_rank_that_cannot_join_in_time_exits(qwen2_folder):
    async with groups.processes(1) as group:
        await group.open(qwen2_folder, "pipeline", size=2, layers=(2, 2))
        port = (await group.leader.expect(messages.RankReady)).port
        addresses = [f"{groups.ADDRESS}:{port}", f"{groups.ADDRESS}:{port}"]
        group.leader.send(messages.Connect(addresses=addresses, secret="s", epoch=1, timeout_seconds=0.1))
        code, _ = await group.leader.exit()
    assert code == -signal.SIGALRM


class Impostor(asyncio.Protocol):
    """Sends what is not the proof of anything."""

    def connection_made(self, transport):
        transport.write(bytes(4096))


@contextlib.asynccontextmanager
async def impostor():
    """Accept connections; yields the address."""
    server = await asyncio.get_running_loop().create_server(Impostor, groups.ADDRESS, 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


@contextlib.asynccontextmanager
async def connected(port):
    """Connect to a rank as soon as it accepts its neighbor."""
    async with asyncio.timeout(groups.END_SECONDS):
        while True:
            with contextlib.suppress(ConnectionError):
                transport, _ = await asyncio.get_running_loop().create_connection(Impostor, groups.ADDRESS, port)
                break
    yield
    transport.close()
