"""One worker process: spawn, handshake, last words, end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from osaurusd import __version__
from osaurusd.errors import LoadFailed, OsaurusError, VersionMismatch, WorkerCrashed
from osaurusd.log import get_logger
from osaurusd.platform import environment
from osaurusd.redaction import redacted
from osaurusd.rpc import framing, messages, watchdog
from osaurusd.rpc.client import WorkerClient
from osaurusd.wire.residency import LoadPhases

log = get_logger(__name__)

LAST_WORDS_LINES = 20
LAST_WORDS_SECONDS = 1.0

# -P: a folder called osaurusd in the working directory must not be taken for the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "osaurusd.worker")

WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a worker reads what is on disk and never asks the network
    "TOKENIZERS_PARALLELISM": "false",  # the tokenizer threads are the worker's own
    "TRANSFORMERS_VERBOSITY": "error",  # it advises, among other things, to install torch
    "USE_TORCH": "0",
}


@dataclass(frozen=True)
class Launch:
    """How to start workers: the command, a library to preload, and the time limits in seconds.

    A worker that has something to do and makes no progress for `hang` is ended.
    """

    command: Sequence[str] = WORKER_COMMAND
    preload: Path | None = None
    load_timeout: float = 600.0
    stop_grace: float = 5.0
    hang: float = 120.0


class WorkerProcess:
    """A worker and its model.

    `client` speaks with it; `exited` is done once it is gone, with the reason; `phases` says where the time of its load
    went.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        output: asyncio.StreamReader,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        launch: Launch,
    ) -> None:
        reader, writer = streams
        self._output = output
        self._process = process
        self._launch = launch
        self._reader = framing.FrameReader(reader, messages.FROM_WORKER)
        self._writer = writer
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._gone = asyncio.create_task(self._reap())
        self.client = WorkerClient(self._reader, writer)
        self.exited = self._gone
        self.loaded: messages.Loaded
        self.phases: LoadPhases
        self._hello: messages.Hello | None = None
        self.on_exit: Callable[[OsaurusError], None] = lambda _: None
        self._stopped_for: OsaurusError | None = None
        self._found_hung: OsaurusError | None = None
        self._greeted_at = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def abandon(self) -> None:
        """End it at once; nobody has it."""
        self._signal(signal.SIGKILL)
        self._writer.close()

    async def stop(self, reason: OsaurusError) -> None:
        """End it: ask, then SIGTERM, then SIGKILL, with the grace period between them; returns once it is gone.

        Requests still in flight fail with `reason`.
        """
        self._stopped_for = reason
        self.client.say_goodbye()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._launch.stop_grace):
                    await asyncio.shield(self.exited)
                    return
            self._signal(number)
        await asyncio.shield(self.exited)

    async def greet(self) -> bool:
        """Wait until it has done its imports; False if it failed to."""
        with contextlib.suppress(EOFError, framing.FrameError, WorkerCrashed):
            return await self._read_hello() is not None
        return False

    async def load(self, order: messages.Load, started: float) -> None:
        """Have it load a model; raises what `start` raises. `started`, in monotonic seconds, is when it was wanted."""
        spare = self._hello is not None
        try:
            await self._try_to_load(order)
        except BaseException:
            # Refused, failed or cancelled: nobody will have this process, so it must not stay.
            self.abandon()
            await asyncio.shield(self._gone)
            raise
        self.phases = self._phases(started, spare=spare)
        self.exited = asyncio.create_task(self._serve())

    def _phases(self, started: float, *, spare: bool) -> LoadPhases:
        hello = self._hello
        assert hello is not None, "it has loaded"
        weights = time.monotonic() - (started if spare else self._greeted_at)
        if spare:
            return LoadPhases(spawn_seconds=0.0, import_seconds=0.0, weights_seconds=weights, spare=True)
        spawn = max(self._greeted_at - started - hello.import_seconds, 0.0)
        return LoadPhases(spawn_seconds=spawn, import_seconds=hello.import_seconds, weights_seconds=weights)

    async def _try_to_load(self, order: messages.Load) -> None:
        limit = self._launch.load_timeout
        try:
            async with asyncio.timeout(limit):
                await self._handshake(order)
        except TimeoutError:
            raise LoadFailed(f"loading took longer than {limit:g} s (`worker.load_timeout_seconds`)") from None
        except EOFError:
            raise await self._end_of_file() from None
        except framing.FrameError as error:
            raise WorkerCrashed(f"the model's worker sent garbage: {error}") from error

    async def _read_hello(self) -> messages.Hello | None:
        if self._hello is None:
            hello = await self._read()
            self._hello = hello if isinstance(hello, messages.Hello) else None
            self._greeted_at = time.monotonic()
        return self._hello

    async def _handshake(self, order: messages.Load) -> None:
        hello = await self._read_hello()
        if hello is None or hello.version != __version__:
            raise VersionMismatch(
                f"this daemon is version {__version__}, but what is installed now is another one; "
                "restart it (`osaurusctl down`, `osaurusctl up`) to finish the upgrade"
            )
        self._writer.write(framing.encode([order]))
        while isinstance(answer := await self._read(), messages.Pulse):
            continue
        if isinstance(answer, messages.LoadFailed):
            raise LoadFailed(f"the model could not be loaded: {answer.message}")
        if not isinstance(answer, messages.Loaded):
            raise framing.FrameError(f"a {type(answer).__name__} frame where Loaded belongs")
        self.loaded = answer

    async def _read(self) -> messages.FromWorker:
        """The next frame while it loads: even if only a pulse, one must come before the worker counts as hung."""
        try:
            async with asyncio.timeout(self._launch.hang):
                frame = await self._reader.read()
        except TimeoutError:
            raise self._hung("while it loaded") from None
        if frame is None:
            raise EOFError
        return frame

    def _hung(self, when: str) -> WorkerCrashed:
        return WorkerCrashed(f"the model's worker made no progress for {self._launch.hang:g} s {when}, and was ended")

    async def _watch(self) -> None:
        """End the worker if it hangs; its end is noticed as any other's."""
        await watchdog.until_hung(self.client, self._launch.hang)
        self._found_hung = self._hung("on its requests")
        log.error("worker hangs", pid=self.pid, seconds=self._launch.hang)
        self._signal(signal.SIGKILL)

    async def _serve(self) -> OsaurusError:
        """Hand frames out until the worker is gone, then fail what was in flight."""
        watching = asyncio.create_task(self._watch())
        try:
            await self.client.read_all()
            error = await self._end_of_file()
        except framing.FrameError as garbage:
            self._signal(signal.SIGKILL)
            await self._gone
            error = WorkerCrashed(f"the model's worker sent garbage: {garbage}")
        finally:
            watching.cancel()
        error = self._stopped_for or self._found_hung or error
        # Told before its requests fail, so that whoever asks again at once is not given this worker.
        self.on_exit(error)
        self.client.fail_all(error)
        return error

    async def _end_of_file(self) -> OsaurusError:
        """A worker that closed its end is dying; one that does not get on with it is helped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._launch.stop_grace):
                return await asyncio.shield(self._gone)
        self._signal(signal.SIGKILL)
        return await asyncio.shield(self._gone)

    async def _reap(self) -> OsaurusError:
        """Wait for the end of the process; return how it ended, with its last words."""
        listening = asyncio.create_task(self._listen())
        code = await self._process.wait()
        # What it has started may hold its output open for longer than anybody wants to wait.
        await asyncio.wait({listening}, timeout=LAST_WORDS_SECONDS)
        listening.cancel()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        words = "\n".join(self._last_words)
        return WorkerCrashed(f"the model's worker ended ({how})" + (f"; its last words:\n{words}" if words else ""))

    async def _listen(self) -> None:
        """Log what the process prints and remember its last lines."""
        rest = b""
        while chunk := await self._output.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            self._note(lines)
        self._note([rest])

    def _note(self, lines: list[bytes]) -> None:
        for line in lines:
            if text := redacted(line.decode(errors="replace").rstrip()):
                self._last_words.append(text)
                log.info("worker says", pid=self.pid, line=text)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


async def start(order: messages.Load, launch: Launch, spare: WorkerProcess | None = None) -> WorkerProcess:
    """Spawn a worker, or take the spare one, and have it load a model.

    Raises:
        LoadFailed: it could not be spawned, the model could not be loaded, or not in time.
        WorkerCrashed: it died while loading; the message has its last words.
        VersionMismatch: what is installed by now is not what this daemon was started from.
    """
    started = time.monotonic()
    if spare is not None:
        try:
            await spare.load(order, started)
        except WorkerCrashed as error:
            # It may have been dying for long: only one that was started for this model says something about it.
            log.warning("the spare worker was of no use", pid=spare.pid, reason=error.message)
        else:
            return spare
    worker = await spawned(launch)
    await worker.load(order, started)
    return worker


async def spawned(launch: Launch) -> WorkerProcess:
    """A worker that has just been spawned and is to load something, or be abandoned.

    Raises:
        LoadFailed: it could not be spawned.
    """
    spawning = asyncio.create_task(_spawn(launch))
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        await asyncio.shield(_end_orphan(spawning))
        raise


async def _spawn(launch: Launch) -> WorkerProcess:
    ours, theirs = socket.socketpair()
    # A pipe of our own: asyncio's would have the end of the process wait for whoever else holds it open.
    output, their_output = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            "--fd",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=their_output,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            # Ctrl-C in the daemon's terminal is for the daemon, which says when workers end.
            process_group=0,
            env=_environment(launch),
        )
    except OSError as error:
        ours.close()
        os.close(output)
        raise LoadFailed(f"no worker process could be started: {error}") from error
    finally:
        theirs.close()
        os.close(their_output)
    reader, transport = await _read_pipe(output)
    worker = WorkerProcess(process, reader, await framing.connect(ours.detach()), launch)
    worker.exited.add_done_callback(lambda _: transport.close())
    return worker


async def _read_pipe(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _end_orphan(spawning: asyncio.Task[WorkerProcess]) -> None:
    """A process that is half spawned belongs to nobody: let it come up, then end it."""
    with contextlib.suppress(LoadFailed):
        worker = await spawning
        worker.abandon()
        await worker.exited


def _environment(launch: Launch) -> dict[str, str]:
    env = {**environment.minimal(), **WORKER_ENVIRONMENT}
    if launch.preload is not None:
        already = env.get("LD_PRELOAD")
        env["LD_PRELOAD"] = f"{launch.preload}:{already}" if already else str(launch.preload)
    return env
