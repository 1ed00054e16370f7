"""What a caller of the pool gets or waits for."""

import asyncio
from copy import copy

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
        self._result: asyncio.Future[ModelState | OsaurusError] = asyncio.get_running_loop().create_future()

    async def wait(self) -> ModelState:
        """Return the model of the grant; raises the error of the rejection."""
        result = await self._result
        if isinstance(result, OsaurusError):
            # A copy: the traceback of the error itself would keep the request for as long as others keep the error.
            raise copy(result)
        return result

    def grant(self, model: ModelState) -> bool:
        if self.done:
            return False
        self._result.set_result(model)
        return True

    def reject(self, error: OsaurusError) -> None:
        if not self.done:
            self._result.set_result(error)

    @property
    def done(self) -> bool:
        return self._result.done()

    @property
    def granted(self) -> ModelState | None:
        if not self.done or self._result.cancelled():
            return None
        result = self._result.result()
        return None if isinstance(result, OsaurusError) else result
