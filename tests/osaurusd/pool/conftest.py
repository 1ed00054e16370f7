import asyncio
import contextlib

import pytest

from osaurusd.models.record import ModelRecord
from osaurusd.pool.pool import Pool
from osaurusd.pool.resident import Rules
from osaurusd.pool.shares import KeepAlive, Share
from osaurusd.pool.terms import Terms
from osaurusd.rpc.process import Launch
from osaurusd.wire.admin import ModelState
from tests.osaurusd.pool.asking import COMMAND, Traces


@pytest.fixture
async def traces():
    """Fails the test if it leaves a process or descriptor behind."""
    traces = Traces()
    yield traces
    try:
        await traces.check_none_left()
    finally:
        for child in traces.children():
            child.kill()
            child.wait()


@pytest.fixture
def model(tmp_path):
    """Makes the record of a model whose worker loads in the given way."""

    def model(behaviour="echo", name=None):
        name = name or behaviour
        folder = tmp_path / name / behaviour
        folder.mkdir(parents=True, exist_ok=True)
        return ModelRecord(
            name=name.lower(),
            repo=name,
            path=folder,
            source="hub",
            state=ModelState.AVAILABLE,
            created=0,
            context_length=512,
        )

    return model


@pytest.fixture
async def make_pool(traces):
    """Makes pools of fake workers."""
    pools = []

    def make_pool(share=None, command=COMMAND, *, rules=None, keep_alive=None, spare_seconds=0, awake=None, **limits):
        launch = Launch(command=command, **limits)
        keep_alive = keep_alive or KeepAlive()
        terms = Terms(launch, share or Share(), rules or Rules(), keep_alive, spare_seconds)
        pools.append(Pool(terms, awake=awake))
        return pools[-1]

    yield make_pool
    async with asyncio.timeout(20):
        for pool in pools:
            await pool.close()


@pytest.fixture
def pool(make_pool):
    return make_pool()


class Gate:
    """What a `slow_ready` worker waits at: `arrived` says that one is there, `open` lets all through."""

    def __init__(self, folder):
        self.arrived = asyncio.Event()
        self._folder = folder
        self._writers = []

    async def listen(self):
        self._server = await asyncio.start_server(self._welcome, "127.0.0.1", 0)
        (self._folder / "gate").write_text(str(self._server.sockets[0].getsockname()[1]))

    def open(self):
        for writer in self._writers:
            writer.write(b"!")

    async def close(self):
        self._server.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _welcome(self, _, writer):
        self._writers.append(writer)
        self.arrived.set()


@pytest.fixture
async def gate(traces, model):
    """The gate of the model `slow_ready`."""
    gate = Gate(model("slow_ready").path)
    await gate.listen()
    yield gate
    await gate.close()
