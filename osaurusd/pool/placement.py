"""Where models run: each in one process on this machine, unless another launcher distributes it."""

import asyncio
import contextlib
from typing import Protocol

from osaurusd.errors import LoadFailed, WorkerCrashed
from osaurusd.log import get_logger
from osaurusd.models.record import ModelRecord
from osaurusd.rpc import framing, messages, worker
from osaurusd.rpc.client import WorkerListener
from osaurusd.rpc.process import Launch, WorkerProcess, spawn
from osaurusd.rpc.watchdog import Clock, Timer
from osaurusd.rpc.worker import Worker
from osaurusd.wire.groups import RankInfo

log = get_logger(__name__)


class Launcher(Protocol):
    """Starts the worker of a model.

    A launcher that distributes a model over several processes returns the `Worker` that accepts requests for all of
    them, and stops the others with it.
    """

    def configure(self, launch: Launch, standby_seconds: float) -> None:
        """Use these settings for later starts."""

    def needs_bytes(self, record: ModelRecord) -> int | None:
        """Return the minimum memory on this machine of a model that is distributed; None for others."""

    def ranks(self, key: str) -> list[RankInfo]:
        """Describe the processes of a model that is distributed; empty for others."""

    async def start(self, key: str, request: messages.Load, listener: WorkerListener) -> Worker:
        """Start a worker and load a model into it.

        Raises:
            OsaurusError: as `rpc.worker.start`.
        """

    def prepare_next(self) -> None:
        """Prepare for another load soon."""

    def drop_standby(self) -> None:
        """Stop processes that only wait for the next load."""

    async def close(self) -> None:
        """Stop every process that has no model."""


class LocalLauncher:
    """Runs each model in one process on this machine, and keeps a standby process ready after a load."""

    def __init__(self, launch: Launch, standby_seconds: float, clock: Clock) -> None:
        self._launch = launch
        self._clock = clock
        self._standby = Standby(launch, standby_seconds, clock)

    def configure(self, launch: Launch, standby_seconds: float) -> None:
        self._launch = launch
        self._standby.configure(launch, standby_seconds)

    def needs_bytes(self, record: ModelRecord) -> int | None:  # noqa: ARG002  of the protocol
        return None

    def ranks(self, key: str) -> list[RankInfo]:  # noqa: ARG002  of the protocol
        return []

    async def start(self, key: str, request: messages.Load, listener: WorkerListener) -> Worker:  # noqa: ARG002
        return await worker.start(request, self._launch, self._clock, listener, self._standby.take())

    def prepare_next(self) -> None:
        self._standby.prepare()

    def drop_standby(self) -> None:
        self._standby.drop()

    async def close(self) -> None:
        await self._standby.close()


class Standby:
    """At most one process without a model that has completed its imports, so that the next load skips them.

    Args:
        launch: how to start the process.
        seconds: how long to keep it after a load; 0 keeps none.
        clock: measures that time.
    """

    def __init__(self, launch: Launch, seconds: float, clock: Clock) -> None:
        self._launch = launch
        self._seconds = seconds
        self._clock = clock
        self._starting: asyncio.Task[WorkerProcess | None] | None = None
        self._expiry: Timer | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    def configure(self, launch: Launch, seconds: float) -> None:
        """Use new settings; drops a process that was started with others."""
        if (launch, seconds) != (self._launch, self._seconds):
            self._launch, self._seconds = launch, seconds
            self.drop()

    def prepare(self) -> None:
        """Start a process unless there is a usable one, and restart its expiry."""
        if not self._seconds:
            return
        if self._starting is None or not self._usable(self._starting):
            self.drop()
            self._starting = asyncio.create_task(self._start())
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._clock.call_at(self._clock.time() + self._seconds, self.drop)

    def take(self) -> WorkerProcess | None:
        """Hand the process over to the caller; None unless one is ready."""
        starting = self._starting
        if starting is None or not starting.done() or not self._usable(starting):
            return None
        self._starting = None
        return starting.result()

    def drop(self) -> None:
        """Stop the process."""
        starting, self._starting = self._starting, None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if starting is not None:
            stopping = asyncio.create_task(_stop(starting))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """Stop the process and return once it has exited."""
        self._seconds = 0
        self.drop()
        if self._stopping:
            await asyncio.wait(self._stopping)

    def _usable(self, starting: asyncio.Task[WorkerProcess | None]) -> bool:
        if not starting.done():
            return True
        process = starting.result()
        return process is not None and not process.exited.done()

    async def _start(self) -> WorkerProcess | None:
        try:
            process = await spawn(self._launch, self._clock)
        except LoadFailed as error:
            log.warning("cannot start a standby worker", error=error.message)
            return None
        ready = False
        try:
            ready = await _completes_imports(process)
        finally:
            if not ready:
                process.kill()
                await asyncio.shield(process.exited)
        if not ready:
            return None
        log.info("standby worker ready", pid=process.pid)
        return process


async def _completes_imports(process: WorkerProcess) -> bool:
    with contextlib.suppress(EOFError, framing.FrameError, WorkerCrashed):
        return await process.watchdog.guard(process.read_hello()) is not None
    return False


async def _stop(starting: asyncio.Task[WorkerProcess | None]) -> None:
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        if process := await starting:
            process.kill()
            await process.exited
