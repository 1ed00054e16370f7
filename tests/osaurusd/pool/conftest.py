import asyncio

import pytest

from osaurusd.pool.config import KeepAlive, PoolConfig, WorkerLimits
from osaurusd.pool.pool import Pool
from osaurusd.pool.state import SchedulerConfig
from osaurusd.rpc.process import Launch
from tests.osaurusd.pool.fixtures import clock, gate, model, processes
from tests.osaurusd.pool.helpers import COMMAND

__all__ = ["clock", "gate", "model", "processes"]


@pytest.fixture
async def make_pool(processes):
    """Builds pools of fake workers; further arguments are those of `Launch`."""
    pools = []

    def make_pool(*, limits=None, scheduler=None, keep_alive=None, standby_seconds=0, power=None, clock=None, **launch):
        config = PoolConfig(
            launch=Launch(command=COMMAND, **launch),
            limits=limits or WorkerLimits(),
            scheduler=scheduler or SchedulerConfig(),
            keep_alive=keep_alive or KeepAlive(),
            standby_seconds=standby_seconds,
        )
        pools.append(Pool(config, power=power, clock=clock))
        return pools[-1]

    yield make_pool
    async with asyncio.timeout(60):
        for pool in pools:
            await pool.close()


@pytest.fixture
async def pool(make_pool):
    return make_pool()
