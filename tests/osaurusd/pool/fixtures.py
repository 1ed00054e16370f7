"""Fixtures that the tests of pool and rpc share."""

import asyncio
import contextlib

import pytest

from osaurusd.models.record import ModelRecord
from osaurusd.wire.admin import Availability
from tests.osaurusd.pool.helpers import FakeClock, no_leaked_processes


@pytest.fixture
async def processes():
    """Fails the test if it leaks a process or a descriptor."""
    async with no_leaked_processes() as check:
        yield check


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def model(tmp_path):
    """Builds the record of a model whose fake worker behaves as named."""

    def model(behavior="echo", name=None):
        name = name or behavior
        folder = tmp_path / name / behavior
        folder.mkdir(parents=True, exist_ok=True)
        return ModelRecord(
            name=name.lower(),
            repo=name,
            path=folder,
            source="hub",
            state=Availability.AVAILABLE,
            created=0,
            context_length=512,
        )

    return model


class LoadGate:
    """Holds back `slow_ready` workers: `arrived` is set once one waits, `open` lets all finish loading."""

    def __init__(self, folder):
        self.arrived = asyncio.Event()
        self._folder = folder
        self._server = None
        self._writers = []

    async def listen(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
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

    async def _accept(self, _, writer):
        self._writers.append(writer)
        self.arrived.set()


@pytest.fixture
async def gate(processes, model):
    """The gate of the model `slow_ready`."""
    gate = LoadGate(model("slow_ready").path)
    await gate.listen()
    yield gate
    await gate.close()
