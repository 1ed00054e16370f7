"""Telling a worker that hangs from one that is busy, or has nothing to do."""

import asyncio
import time

from osaurusd.pool.client import WorkerClient


async def until_hung(client: WorkerClient, limit: float) -> None:
    """Return once the worker has had requests for `limit` seconds without getting on with any of them."""
    while True:
        await client.busy.wait()
        left = client.moved_at + limit - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(left)
