"""The asyncio side of a worker: frames in and out, and everything that is not MLX."""

import asyncio
import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NoReturn

import mlx.core as mx

from osaurusd import __version__
from osaurusd.errors import OsaurusError
from osaurusd.inference.request import Location
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.engine import Engine, Limits
from osaurusd.worker.engine.mlx_thread import MlxThread
from osaurusd.worker.frontend.prepare import Preparer
from osaurusd.worker.outbox import Outbox
from osaurusd.worker.runners.text import apply_limits, device_name, load, working_set_bytes

TOKENIZER_THREADS = 2
PULSE_SECONDS = 1.0


class Session:
    """One daemon, one model: reads orders until the daemon closes its end or says goodbye.

    Args:
        reader: orders.
        outbox: takes what there is to say.
        import_seconds: how long it took to import all this.
    """

    def __init__(
        self, reader: framing.FrameReader[messages.ToWorker], outbox: Outbox, *, import_seconds: float = 0.0
    ) -> None:
        self._reader = reader
        self._outbox = outbox
        self._import_seconds = import_seconds
        self._loop = asyncio.get_running_loop()
        self._mlx = MlxThread(outbox.send, _give_up, lambda: bool(self._preparing))
        self._tokenizing = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._preparer: Preparer | None = None
        self._engine: Engine | None = None
        self._loading = False
        self._loaded_bytes = 0
        self._at_work = asyncio.Event()

    async def run(self) -> None:
        """Serve until the daemon is gone."""
        self._mlx.start()
        self._outbox.send([messages.Hello(version=__version__, import_seconds=self._import_seconds)])
        pulse = self._loop.create_task(self._tell_pulse())
        try:
            await self._obey()
        finally:
            pulse.cancel()

    async def _obey(self) -> None:
        while (frame := await self._reader.read()) is not None:
            self._at_work.set()
            match frame:
                case messages.Load():
                    self._loading = True
                    self._mlx.post(partial(self._load, frame))
                case messages.Limits():
                    self._mlx.post(partial(self._limit, frame))
                case messages.Generate():
                    self._start(frame)
                case messages.Cancel():
                    self._cancel(frame.id)
                case messages.Shutdown():
                    return

    async def _tell_pulse(self) -> None:
        """Tell the daemon about progress while there is some. Only numbers are read, so MLX's thread loses no time."""
        told, idle_looks = messages.Pulse(progress=0), 0
        while True:
            await self._at_work.wait()
            await asyncio.sleep(PULSE_SECONDS)
            engine = self._engine
            progress = self._loaded_bytes + (engine.progress if engine else 0)
            pulse = messages.Pulse(progress=progress, reserved_bytes=engine.reserved_bytes if engine else 0)
            # What is reserved may shrink without any progress: by a cancellation.
            if pulse != told:
                told = pulse
                self._outbox.send([pulse])
            at_work = self._loading or self._preparing or (engine and engine.busy)
            # A request may be on its way from one thread to the other when nobody seems to have one.
            idle_looks = 0 if at_work else idle_looks + 1
            if idle_looks > 1:
                self._at_work.clear()

    def _count_loaded(self, nbytes: int) -> None:
        self._loaded_bytes += nbytes

    def _load(self, order: messages.Load) -> list[messages.Frame]:
        """On the MLX thread."""
        self._limits = Limits(
            order.memory_limit_bytes, order.prefix_cache_bytes, order.max_waiting, order.stall_seconds
        )
        try:
            model = load(order, self._count_loaded)
            self._engine = Engine(model.network, model.end_tokens, self._limits)
            self._preparer = Preparer(model, self._engine.layout, self._engine.vocabulary)
        except Exception as error:  # noqa: BLE001  model files can be wrong in more ways than mlx_lm names
            return [messages.LoadFailed(message=f"{type(error).__name__}: {error}")]
        finally:
            self._loading = False
        self._mlx.adopt(self._engine)
        loaded = messages.Loaded(
            device=device_name(),
            dtype=model.dtype,
            memory_bytes=mx.get_active_memory(),
            batched=self._engine.layout.batchable,
            least_bytes=self._engine.serving_bytes(order.context_length),
            working_set_bytes=working_set_bytes(),
        )
        return [loaded, self._engine.stats()]

    def _limit(self, order: messages.Limits) -> list[messages.Frame]:
        """On the MLX thread."""
        if self._engine is None:
            return []
        apply_limits(order)
        self._limits = replace(
            self._limits, memory_bytes=order.memory_limit_bytes, prefix_cache_bytes=order.prefix_cache_bytes
        )
        self._engine.set_limits(self._limits)
        return [self._engine.stats()]

    def _start(self, order: messages.Generate) -> None:
        task = self._loop.create_task(self._generate(order))
        self._preparing[order.id] = task
        task.add_done_callback(lambda _: self._preparing.pop(order.id))

    async def _generate(self, order: messages.Generate) -> None:
        assert self._preparer is not None, "the daemon asks only after Loaded"
        assert self._engine is not None, "the daemon asks only after Loaded"
        try:
            request = await self._loop.run_in_executor(self._tokenizing, self._preparer.prepare, order)
        except asyncio.CancelledError:
            raise
        except OsaurusError as error:
            self._refuse(order, error.code, error.message, error.location)
        except BaseException as error:  # noqa: BLE001  it is this request's, also what Rust raises, which is no Exception
            reason = f"the prompt could not be made: {type(error).__name__}: {error}"
            self._refuse(order, ErrorCode.INVALID_REQUEST, reason, None)
        else:
            self._mlx.post(partial(self._engine.add, request))

    def _refuse(self, order: messages.Generate, code: ErrorCode, reason: str, location: Location | None) -> None:
        self._outbox.send([messages.Failed(id=order.id, code=code, message=reason, location=location)])

    def _cancel(self, id_: int) -> None:
        if task := self._preparing.get(id_):
            task.cancel()
        # Also then, for the task may just have handed its request over.
        if self._engine is not None:
            self._mlx.post(partial(self._engine.cancel, id_))


async def serve(fd: int, import_seconds: float = 0.0) -> None:
    """Run a session over the inherited socket `fd`; `import_seconds` is how long it took to get here."""
    outbox = Outbox(fd, asyncio.get_running_loop())
    reader, _ = await framing.connect(fd)
    session = Session(framing.FrameReader(reader, messages.TO_WORKER), outbox, import_seconds=import_seconds)
    with contextlib.closing(outbox), contextlib.suppress(framing.FrameError):
        await session.run()


def _give_up(reason: str) -> NoReturn:
    """End this process with `reason` as the last line of standard error, where the daemon looks for it."""
    print(reason, file=sys.stderr, flush=True)  # noqa: T201  standard error is the daemon's channel for last words
    os._exit(1)
