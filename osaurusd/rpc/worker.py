"""Loaded workers: the load handshake, serving, and the ways a worker stops."""

import asyncio
import signal
from typing import Protocol, TypeVar

from osaurusd import __version__
from osaurusd.errors import LoadFailed, OsaurusError, VersionMismatch, WorkerCrashed
from osaurusd.log import get_logger
from osaurusd.rpc import framing, messages
from osaurusd.rpc.client import WorkerClient, WorkerListener
from osaurusd.rpc.process import Launch, WorkerProcess, spawn
from osaurusd.rpc.watchdog import Clock, sleep
from osaurusd.wire.residency import LoadPhases

log = get_logger(__name__)

F = TypeVar("F", bound=messages.Frame)


class Companions(Protocol):
    """The other processes of a model that several run."""

    def stop(self) -> None:
        """Stop them: the worker is about to be stopped."""

    async def worker_exited(self, error: OsaurusError, *, stopped: bool) -> OsaurusError:
        """Stop them after the worker has exited, because it was `stopped` or failed.

        Returns:
            The reason to report, if one of them has caused the exit; otherwise `error`.
        """


class Worker:
    """A worker process that has loaded a model and serves requests.

    Args:
        process: the process.
        loaded: what it reported about the model.
        phases: how long the parts of the load took.
        listener: observes the worker.
        companions: the other processes of the model.

    Attributes:
        client: sends requests.
        loaded: what the worker reported about the model.
        phases: how long the parts of the load took.
        exited: done once the process has exited and its requests have failed; the result is the reason.
    """

    def __init__(
        self,
        process: WorkerProcess,
        loaded: messages.Loaded,
        phases: LoadPhases,
        listener: WorkerListener,
        companions: Companions | None = None,
    ) -> None:
        self.loaded = loaded
        self.phases = phases
        self.client = WorkerClient(process.reader, process.writer, process.watchdog, listener)
        self._process = process
        self._listener = listener
        self._companions = companions
        self._stop_reason: OsaurusError | None = None
        self._hang_error: OsaurusError | None = None
        self.exited = asyncio.create_task(self._serve())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def stop(self, reason: OsaurusError) -> None:
        """Stop the worker and return once it has exited; running requests fail with `reason`.

        Sends a shutdown request, then SIGTERM, then SIGKILL, with the grace period between them.
        """
        self._stop_reason = reason
        if self._companions is not None:
            self._companions.stop()
        self.client.request_shutdown()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if await self._exits_within_grace():
                return
            self._process.signal(number)
        await asyncio.shield(self.exited)

    async def _exits_within_grace(self) -> bool:
        waiting = asyncio.create_task(sleep(self._process.clock, self._process.launch.stop_grace))
        try:
            await asyncio.wait({self.exited, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return self.exited.done()

    async def _serve(self) -> OsaurusError:
        """Route frames until the worker exits, then fail its requests."""
        watching = asyncio.create_task(self._kill_if_hung())
        try:
            await self.client.read_frames()
            error: OsaurusError = await self._process.wait_after_eof()
        except framing.FrameError as invalid:
            self._process.signal(signal.SIGKILL)
            await self._process.exited
            error = invalid_data(invalid)
        finally:
            watching.cancel()
        error = self._stop_reason or self._hang_error or error
        if self._companions is not None:
            error = await self._companions.worker_exited(error, stopped=self._stop_reason is not None)
        self._listener.worker_exited(error)
        self.client.fail_all(error)
        return error

    async def _kill_if_hung(self) -> None:
        await self._process.watchdog.hung.wait()
        self._hang_error = _hung(self._process.launch, "on its requests")
        log.error("worker hung", pid=self.pid, seconds=self._process.launch.hang_timeout)
        self._process.signal(signal.SIGKILL)


async def start(
    request: messages.Load,
    launch: Launch,
    clock: Clock,
    listener: WorkerListener,
    standby: WorkerProcess | None = None,
) -> Worker:
    """Load a model into the standby process or a new one.

    Raises:
        LoadFailed: the process could not be spawned, or the model could not be loaded in time.
        WorkerCrashed: the process exited while loading; the message has the end of its output.
        VersionMismatch: the installed package is not the version of this daemon.
    """
    started_at = clock.time()
    if standby is not None:
        try:
            return await _load(standby, request, listener, started_at, standby=True)
        except WorkerCrashed as error:
            # The process may have died long ago: only the failure of a fresh one concerns this model.
            log.warning("standby worker failed; starting a new one", pid=standby.pid, reason=error.message)
    return await _load(await spawn(launch, clock), request, listener, started_at, standby=False)


async def _load(
    process: WorkerProcess, request: messages.Load, listener: WorkerListener, started_at: float, *, standby: bool
) -> Worker:
    try:
        loaded = await _handshake(process, request)
    except BaseException:
        # Including cancellation: no caller owns the process from here on.
        process.kill()
        await asyncio.shield(process.exited)
        raise
    return Worker(process, loaded, measure_phases(process, started_at, standby=standby), listener)


async def _handshake(process: WorkerProcess, request: messages.Load) -> messages.Loaded:
    limit = process.launch.load_timeout
    try:
        async with asyncio.timeout(limit):
            loaded = await process.watchdog.guard(_exchange(process, request))
    except TimeoutError:
        raise LoadFailed(f"loading took longer than {limit:g} s (`worker.load_timeout_seconds`)") from None
    except EOFError:
        raise await process.wait_after_eof() from None
    except framing.FrameError as error:
        raise invalid_data(error) from error
    if loaded is None:
        raise _hung(process.launch, "while loading")
    return loaded


async def check_version(process: WorkerProcess) -> None:
    """Wait until the worker has finished its imports, and check its version.

    Raises:
        VersionMismatch: the installed package is not the version of this daemon.
        EOFError: the worker closed its end; FrameError: it sent something else.
    """
    hello = await process.read_hello()
    if hello.version != __version__:
        raise VersionMismatch(
            f"the daemon is version {__version__}, but version {hello.version} is installed; "
            'restart the daemon ("osaurusctl down", then "osaurusctl up") to finish the upgrade'
        )


async def read_reply(process: WorkerProcess, kind: type[F]) -> F:
    """Return the next frame but pulses.

    Raises:
        LoadFailed: the model cannot be loaded.
        EOFError: the worker closed its end; FrameError: it sent something else.
    """
    while isinstance(reply := await process.read(), messages.Pulse):
        continue
    if isinstance(reply, messages.LoadFailed):
        raise LoadFailed(f"the model cannot be loaded: {reply.message}")
    if not isinstance(reply, kind):
        raise framing.FrameError(f"expected {kind.__name__}, got {type(reply).__name__}")
    return reply


async def _exchange(process: WorkerProcess, request: messages.Load) -> messages.Loaded:
    await check_version(process)
    process.writer.write(framing.encode([request]))
    return await read_reply(process, messages.Loaded)


def measure_phases(process: WorkerProcess, started_at: float, *, standby: bool = False) -> LoadPhases:
    """Return how long the parts of a load took that has just ended."""
    now = process.clock.time()
    if standby or process.hello is None:
        return LoadPhases(spawn_seconds=0.0, import_seconds=0.0, weights_seconds=now - started_at, standby=standby)
    imports = process.hello.import_seconds
    return LoadPhases(
        spawn_seconds=max(process.hello_at - started_at - imports, 0.0),
        import_seconds=imports,
        weights_seconds=now - process.hello_at,
    )


def _hung(launch: Launch, activity: str) -> WorkerCrashed:
    return WorkerCrashed(f"the model's worker made no progress for {launch.hang_timeout:g} s {activity} and was killed")


def invalid_data(error: framing.FrameError) -> WorkerCrashed:
    """Build the error for a worker that sent something that is not a frame of the protocol."""
    return WorkerCrashed(f"the model's worker sent invalid data: {error}")
