"""Telling a worker that hangs from one that is busy, or has nothing to do."""

import asyncio
import time

from osaurusd.rpc.client import WorkerClient

# A daemon that was itself stopped for a while has frames to read before it may say that none came.
READING_SECONDS = 1.0


async def until_hung(client: WorkerClient, limit: float) -> None:
    """Return once the worker has had requests for `limit` seconds without getting on with any of them."""
    while True:
        await client.busy.wait()
        if _left(client, limit) > 0:
            await asyncio.sleep(_left(client, limit))
            continue
        await asyncio.sleep(min(READING_SECONDS, limit))
        if client.busy.is_set() and _left(client, limit) <= 0:
            return


def _left(client: WorkerClient, limit: float) -> float:
    """Seconds in which there must be progress."""
    return client.moved_at + limit - time.monotonic()
