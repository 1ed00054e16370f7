"""Worker processes: spawn, hello, output, exit."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from osaurusd.errors import LoadFailed, WorkerCrashed
from osaurusd.log import get_logger
from osaurusd.platform import environment
from osaurusd.redaction import redact
from osaurusd.rpc import framing, messages
from osaurusd.rpc.job import module_command
from osaurusd.rpc.watchdog import Clock, Watchdog, sleep

log = get_logger(__name__)

OUTPUT_TAIL_LINES = 20
OUTPUT_TAIL_SECONDS = 1.0
"""How long to wait for the rest of the output after the process has exited: its children may keep the pipe open."""

WORKER_COMMAND = module_command("osaurusd.worker")

WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # workers read local files only
    "TOKENIZERS_PARALLELISM": "false",  # the worker tokenizes on its own threads
    "TRANSFORMERS_VERBOSITY": "error",  # hides advice such as to install torch
    "USE_TORCH": "0",
}


class Launch(msgspec.Struct, frozen=True):
    """How to start workers; times are in seconds.

    Attributes:
        command: the command line up to `--fd N`.
        preload: a shared library for `LD_PRELOAD`.
        blas_core: the processor type for OpenBLAS, unless the environment sets one; None leaves it to OpenBLAS.
        load_timeout: limit from the spawn until the model is loaded.
        stop_grace: how long to wait after the shutdown request, and after SIGTERM.
        hang_timeout: a worker that has work and makes no progress for this long is killed.
        signal_meanings: what it means if one of these signals has ended a worker.
    """

    command: Sequence[str] = WORKER_COMMAND
    preload: Path | None = None
    blas_core: str | None = None
    load_timeout: float = 600.0
    stop_grace: float = 5.0
    hang_timeout: float = 120.0
    signal_meanings: Mapping[signal.Signals, str] = msgspec.field(default_factory=dict)


class WorkerProcess:
    """A worker process without a model.

    Attributes:
        exited: done once the process has been reaped; the result describes the exit.
        hello: its first frame, once `read_hello` has returned.
        hello_at: when that frame arrived, in the clock's seconds.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        output: asyncio.StreamReader,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        launch: Launch,
        clock: Clock,
    ) -> None:
        stream, self.writer = streams
        self.reader = framing.FrameReader(stream, messages.FROM_WORKER)
        self.launch = launch
        self.clock = clock
        self.watchdog = Watchdog(launch.hang_timeout, clock)
        self.hello: messages.Hello | None = None
        self.hello_at = 0.0
        self._process = process
        self._output = output
        self._output_tail: deque[str] = deque(maxlen=OUTPUT_TAIL_LINES)
        self.exited = asyncio.create_task(self._reap())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def suspended(self) -> bool:
        """Whether a signal or a debugger has stopped the process."""
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False

    async def read_hello(self) -> messages.Hello:
        """Wait until the worker has finished its imports.

        Raises:
            EOFError: the worker closed its end; FrameError: it sent something else.
        """
        if self.hello is None:
            frame = await self.read()
            if not isinstance(frame, messages.Hello):
                raise framing.FrameError(f"expected Hello, got {type(frame).__name__}")
            self.hello, self.hello_at = frame, self.clock.time()
        return self.hello

    async def read(self) -> messages.FromWorker:
        """Read the next frame.

        Raises:
            EOFError: the worker closed its end; FrameError: it sent invalid data.
        """
        frame = await self.reader.read()
        if frame is None:
            raise EOFError
        self.watchdog.touch()
        return frame

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing after the exit."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and close the connection."""
        self.signal(signal.SIGKILL)
        self.writer.close()

    async def wait_after_eof(self) -> WorkerCrashed:
        """Wait for the exit of a worker that has closed its end; kill it if it stays alive."""
        waiting = asyncio.create_task(sleep(self.clock, self.launch.stop_grace))
        try:
            await asyncio.wait({self.exited, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self.exited.done():
            self.signal(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    async def _reap(self) -> WorkerCrashed:
        """Wait for the exit; return how the process exited and the end of its output."""
        reading = asyncio.create_task(self._read_output())
        code = await self._process.wait()
        await asyncio.wait({reading}, timeout=OUTPUT_TAIL_SECONDS)
        reading.cancel()
        status = self._describe_exit(code)
        output = "\n".join(self._output_tail)
        return WorkerCrashed(
            f"the model's worker exited ({status})" + (f"; its last output:\n{output}" if output else "")
        )

    def _describe_exit(self, code: int) -> str:
        if code >= 0:
            return f"exit code {code}"
        number = signal.Signals(-code)
        meaning = self.launch.signal_meanings.get(number)
        return f"{number.name}: {meaning}" if meaning else number.name

    async def _read_output(self) -> None:
        """Log the output of the process and keep its last lines."""
        rest = b""
        while chunk := await self._output.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            self._log_output(lines)
        self._log_output([rest])

    def _log_output(self, lines: list[bytes]) -> None:
        for line in lines:
            if text := redact(line.decode(errors="replace").rstrip()):
                self._output_tail.append(text)
                log.info("worker output", pid=self.pid, line=text)


async def spawn(launch: Launch, clock: Clock) -> WorkerProcess:
    """Spawn a worker process; the caller loads a model into it or kills it.

    Raises:
        LoadFailed: it could not be spawned.
    """
    spawning = asyncio.create_task(_spawn(launch, clock))
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        await asyncio.shield(_kill_spawned(spawning))
        raise


async def _spawn(launch: Launch, clock: Clock) -> WorkerProcess:
    ours, theirs = socket.socketpair()
    # asyncio's own pipe would delay the exit notification while a grandchild keeps the pipe open.
    output, output_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            "--fd",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output_end,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            # Ctrl-C in the daemon's terminal must reach the daemon only: it decides when workers exit.
            process_group=0,
            env=_environment(launch),
        )
    except OSError as error:
        ours.close()
        os.close(output)
        raise LoadFailed(f"cannot start a worker process: {error}") from error
    finally:
        theirs.close()
        os.close(output_end)
    reader, transport = await _open_pipe(output)
    worker = WorkerProcess(process, reader, await framing.connect(ours.detach()), launch, clock)
    worker.exited.add_done_callback(lambda _: transport.close())
    return worker


async def _open_pipe(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _kill_spawned(spawning: asyncio.Task[WorkerProcess]) -> None:
    """A half-spawned process cannot be killed yet: wait until it has started."""
    with contextlib.suppress(LoadFailed):
        worker = await spawning
        worker.kill()
        await worker.exited


def _environment(launch: Launch) -> dict[str, str]:
    env = {**environment.minimal(), **WORKER_ENVIRONMENT}
    if launch.preload is not None:
        inherited = env.get("LD_PRELOAD")
        env["LD_PRELOAD"] = f"{launch.preload}:{inherited}" if inherited else str(launch.preload)
        if launch.blas_core is not None:
            env.setdefault("OPENBLAS_CORETYPE", launch.blas_core)
    return env
