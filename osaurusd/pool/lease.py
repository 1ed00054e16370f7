"""What a caller of the pool gets or waits for."""

import asyncio

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.pool.state import ModelState
from osaurusd.rpc.client import WorkerClient


class Lease(msgspec.Struct, frozen=True):
    """The right to send requests to a loaded model.

    Attributes:
        client: sends them.
        queue_seconds: how long the lease waited for memory or a free place.
        load_seconds: how long it waited for the load.
    """

    client: WorkerClient
    queue_seconds: float
    load_seconds: float


class FutureWaiter:
    """A waiter that resumes a coroutine."""

    def __init__(self) -> None:
        self.future: asyncio.Future[ModelState] = asyncio.get_running_loop().create_future()

    def grant(self, model: ModelState) -> bool:
        if self.future.done():
            return False
        self.future.set_result(model)
        return True

    def reject(self, error: OsaurusError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    @property
    def granted(self) -> ModelState | None:
        if not self.future.done() or self.future.cancelled() or self.future.exception() is not None:
            return None
        return self.future.result()
