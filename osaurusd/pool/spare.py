"""A worker in reserve, with its imports done: the next load need not wait for them."""

import asyncio
import contextlib

from osaurusd.errors import LoadFailed
from osaurusd.log import get_logger
from osaurusd.rpc import process
from osaurusd.rpc.process import Launch, WorkerProcess

log = get_logger(__name__)


class Spare:
    """At most one spare worker, kept for a while after a model was loaded.

    Args:
        launch: how to start it.
        seconds: how long to keep it; 0 keeps none.
    """

    def __init__(self, launch: Launch, seconds: float) -> None:
        self._launch = launch
        self._seconds = seconds
        self._bringing_up: asyncio.Task[WorkerProcess | None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def configure(self, launch: Launch, seconds: float) -> None:
        """From now on keep one like this; one that was started differently goes."""
        if (launch, seconds) != (self._launch, self._seconds):
            self._launch, self._seconds = launch, seconds
            self.drop()

    def prepare(self) -> None:
        """A model was loaded, and the next may follow: have a spare worker for a while."""
        if not self._seconds:
            return
        if self._bringing_up is None or not self._usable():
            self.drop()
            self._bringing_up = asyncio.create_task(self._bring_up(self._launch))
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(self._seconds, self.drop)

    def take(self) -> WorkerProcess | None:
        """The spare worker, which is the caller's then; None unless one is ready."""
        if self._bringing_up is None or not self._bringing_up.done() or not self._usable():
            return None
        worker = self._bringing_up.result()
        self._bringing_up = None
        return worker

    def drop(self) -> None:
        """End the spare worker."""
        bringing_up, self._bringing_up = self._bringing_up, None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if bringing_up is not None:
            ending = asyncio.create_task(_end(bringing_up))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End it, and return once it is gone."""
        self._seconds = 0
        self.drop()
        if self._ending:
            await asyncio.wait(self._ending)

    def _usable(self) -> bool:
        if self._bringing_up is None or not self._bringing_up.done():
            return self._bringing_up is not None
        worker = self._bringing_up.result()
        return worker is not None and not worker.exited.done()

    async def _bring_up(self, launch: Launch) -> WorkerProcess | None:
        try:
            worker = await process.spawned(launch)
        except LoadFailed as error:
            log.warning("no spare worker", error=error.message)
            return None
        greeted = False
        try:
            greeted = await worker.greet()
        finally:
            if not greeted:
                worker.abandon()
                await asyncio.shield(worker.exited)
        if not greeted:
            return None
        log.info("spare worker is ready", pid=worker.pid)
        return worker


async def _end(bringing_up: asyncio.Task[WorkerProcess | None]) -> None:
    bringing_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        if worker := await bringing_up:
            worker.abandon()
            await worker.exited
