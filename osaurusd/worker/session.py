"""The asyncio side of a worker: frames, tokenizing, and everything else that does not touch MLX."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

from osaurusd import __version__
from osaurusd.errors import OsaurusError
from osaurusd.inference.events import Completed, Started, Usage
from osaurusd.inference.request import Location
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.mlx_thread import MlxThread
from osaurusd.worker.outbox import Outbox
from osaurusd.worker.runners import load_runner
from osaurusd.worker.runners.base import Runner
from osaurusd.worker.runners.rank import Rank

TOKENIZER_THREADS = 2

IMAGE_THREADS = 2
"""Threads that prepare requests with images. Each needs about 1 GB for an image of 64 million pixels."""

PULSE_SECONDS = 1.0


class Session:
    """Serves one model to one daemon until the daemon closes its end or sends Shutdown.

    Args:
        reader: frames from the daemon.
        outbox: sends frames to the daemon.
        import_seconds: how long the imports of this process took.
    """

    def __init__(
        self, reader: framing.FrameReader[messages.ToWorker], outbox: Outbox, *, import_seconds: float = 0.0
    ) -> None:
        self._reader = reader
        self._outbox = outbox
        self._import_seconds = import_seconds
        self._loop = asyncio.get_running_loop()
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._mlx = MlxThread(outbox.send, _exit_with, lambda: bool(self._preparing))
        self._tokenizer_pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        # Their own, because a large image takes longer than any text.
        self._image_pool = ThreadPoolExecutor(IMAGE_THREADS, thread_name_prefix="image")
        self._runner: Runner | None = None
        self._rank: Rank | None = None
        self._loading = False
        self._loaded_bytes = 0
        self._active = asyncio.Event()

    async def run(self) -> None:
        """Serve until the connection ends."""
        self._mlx.start()
        self._outbox.send([messages.Hello(version=__version__, import_seconds=self._import_seconds)])
        pulse = self._loop.create_task(self._send_pulses())
        try:
            await self._read_frames()
        finally:
            pulse.cancel()

    async def _read_frames(self) -> None:
        while (received := await self._reader.receive()) is not None:
            frame = received.frame
            self._active.set()
            match frame:
                case messages.Load():
                    self._loading = True
                    self._mlx.post(partial(self._load, frame))
                case messages.Connect():
                    self._mlx.post(partial(self._connect, frame))
                case messages.Plan():
                    assert self._rank is not None, "only ranks get plans"
                    self._mlx.post(self._rank.receive(frame, received.blobs))
                case messages.Limits():
                    self._mlx.post(partial(self._apply_limits, frame))
                case messages.DropCaches():
                    self._mlx.post(self._drop_caches)
                case messages.Generate() | messages.Embed() | messages.Rerank() | messages.Score():
                    self._start(frame, received.blobs)
                case messages.Cancel():
                    self._cancel(frame.id)
                case messages.Shutdown():
                    return

    async def _send_pulses(self) -> None:
        """Report progress about once a second while there is any. Reads counters only: the MLX thread never waits."""
        sent, idle_checks = messages.Pulse(progress=0), 0
        while True:
            await self._active.wait()
            await asyncio.sleep(PULSE_SECONDS)
            pulse = self._pulse()
            # A cancellation can shrink the reservation without progress.
            if pulse != sent:
                sent = pulse
                self._outbox.send([pulse])
            # A request that moves from one thread to the other can be invisible to one check, but not to two.
            idle_checks = 0 if self._is_busy else idle_checks + 1
            if idle_checks > 1:
                self._active.clear()

    def _pulse(self) -> messages.Pulse:
        if self._runner is None:
            return messages.Pulse(progress=self._loaded_bytes)
        engine = self._runner.engine
        return messages.Pulse(
            progress=self._loaded_bytes + engine.progress,
            reserved_bytes=engine.reserved_bytes,
            plan=0 if self._rank is None else self._rank.plan,
        )

    @property
    def _is_busy(self) -> bool:
        return bool(self._loading or self._preparing or (self._runner is not None and self._runner.engine.busy))

    def _count_loaded(self, nbytes: int) -> None:
        self._loaded_bytes += nbytes

    def _load(self, frame: messages.Load) -> list[messages.Frame]:
        """Load the model. Runs on the MLX thread."""
        try:
            if frame.rank is not None:
                self._rank = Rank.open(frame, frame.rank, self._outbox.send, _exit_with)
                return [self._rank.ready()]
            return self._adopt(load_runner(frame, self._count_loaded))
        except Exception as error:  # noqa: BLE001  model files can be wrong in more ways than mlx_lm reports
            return [messages.LoadFailed(message=_describe(error))]
        finally:
            self._loading = False

    def _connect(self, frame: messages.Connect) -> list[messages.Frame]:
        """Join the group of ranks, and load this rank's part of the model. Runs on the MLX thread."""
        assert self._rank is not None, "the daemon sends Connect only after RankReady"
        self._loading = True
        try:
            return self._adopt(self._rank.connect(frame, self._count_loaded))
        except Exception as error:  # noqa: BLE001  as above
            return [messages.LoadFailed(message=_describe(error))]
        finally:
            self._loading = False

    def _adopt(self, runner: Runner) -> list[messages.Frame]:
        self._runner = runner
        self._mlx.adopt(runner.engine)
        return [runner.loaded, runner.engine.stats()]

    def _apply_limits(self, frame: messages.Limits) -> list[messages.Frame]:
        """Apply new limits. Runs on the MLX thread."""
        if self._runner is None:
            return []
        self._runner.apply_limits(frame)
        return [self._runner.engine.stats()]

    def _drop_caches(self) -> list[messages.Frame]:
        """Return the memory of caches to the system. Runs on the MLX thread."""
        if self._runner is None:
            return []
        self._runner.engine.drop_caches()
        return [self._runner.engine.stats()]

    def _start(self, frame: messages.Request, blobs: Sequence[bytes]) -> None:
        task = self._loop.create_task(self._run_request(frame, blobs))
        self._preparing[frame.id] = task
        task.add_done_callback(lambda _: self._preparing.pop(frame.id))

    async def _run_request(self, frame: messages.Request, blobs: Sequence[bytes]) -> None:
        assert self._runner is not None, "the daemon sends requests only after Loaded"
        try:
            pool = self._image_pool if blobs else self._tokenizer_pool
            request = await self._loop.run_in_executor(pool, self._runner.prepare, frame, blobs)
        except asyncio.CancelledError:
            raise
        except OsaurusError as error:
            self._fail(frame, error.code, error.message, error.location)
        except BaseException as error:  # noqa: BLE001  panics of Rust extensions do not derive from Exception
            reason = f"the request could not be prepared: {type(error).__name__}: {error}"
            self._fail(frame, ErrorCode.INVALID_REQUEST, reason, None)
        else:
            if isinstance(frame, messages.Generate) and frame.request.count_only:
                self._outbox.send(_count(frame.id, len(request.prompt_tokens)))
            else:
                self._mlx.post(partial(self._runner.engine.add, request))

    def _fail(self, frame: messages.Request, code: ErrorCode, reason: str, location: Location | None) -> None:
        self._outbox.send([messages.Failed(id=frame.id, code=code, message=reason, location=location)])

    def _cancel(self, id_: int) -> None:
        if task := self._preparing.get(id_):
            task.cancel()
        # Always: the task may have passed its request on already.
        if self._runner is not None:
            self._mlx.post(partial(self._runner.engine.cancel, id_))


async def serve(fd: int, import_seconds: float = 0.0) -> None:
    """Run a session over the inherited socket `fd`. `import_seconds` is how long the imports took."""
    outbox = Outbox(fd, asyncio.get_running_loop())
    reader, _ = await framing.connect(fd)
    session = Session(framing.FrameReader(reader, messages.TO_WORKER), outbox, import_seconds=import_seconds)
    with contextlib.closing(outbox), contextlib.suppress(framing.FrameError):
        await session.run()


def _describe(error: Exception) -> str:
    return error.message if isinstance(error, OsaurusError) else f"{type(error).__name__}: {error}"


def _count(id_: int, tokens: int) -> list[messages.Frame]:
    """Report the length of a prompt as the whole result of a request."""
    # Nothing is processed, so that the usage counts nothing.
    events = (Started(prompt_tokens=tokens), Completed(usage=Usage()))
    return [messages.Output(id=id_, event=event) for event in events]


def _exit_with(reason: str) -> NoReturn:
    """End this process with `reason` as the last line of standard error, which the daemon reports."""
    print(reason, file=sys.stderr, flush=True)  # noqa: T201  the daemon reads the reason from standard error
    os._exit(1)
