"""The asyncio side of a worker: frames in and out, and everything that is not MLX."""

import asyncio
import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

import mlx.core as mx

from osaurusd import __version__, ipc
from osaurusd.errors import OsaurusError
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine import Engine, Limits
from osaurusd.worker.load import device_name, load
from osaurusd.worker.mlx_thread import MlxThread
from osaurusd.worker.outbox import Outbox
from osaurusd.worker.prepare import Preparer

TOKENIZER_THREADS = 2


class Session:
    """One daemon, one model: reads orders until the daemon closes its end or says goodbye."""

    def __init__(self, reader: ipc.FrameReader[ipc.ToWorker], outbox: Outbox) -> None:
        self._reader = reader
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._mlx = MlxThread(outbox.send, _give_up)
        self._tokenizing = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._preparer: Preparer | None = None
        self._engine: Engine | None = None

    async def run(self) -> None:
        """Serve until the daemon is gone."""
        self._mlx.start()
        self._outbox.send([ipc.Hello(version=__version__)])
        while (frame := await self._reader.read()) is not None:
            match frame:
                case ipc.Load():
                    self._mlx.post(partial(self._load, frame))
                case ipc.Generate():
                    self._start(frame)
                case ipc.Cancel():
                    self._cancel(frame.id)
                case ipc.Shutdown():
                    return

    def _load(self, order: ipc.Load) -> list[ipc.Frame]:
        """On the MLX thread."""
        limits = Limits(order.memory_limit_bytes, order.prefix_cache_bytes, order.max_waiting, order.stall_seconds)
        try:
            model = load(order)
            self._engine = Engine(model.network, model.end_tokens, limits)
            self._preparer = Preparer(model, self._engine.layout, self._engine.vocabulary)
        except Exception as error:  # noqa: BLE001  model files can be wrong in more ways than mlx_lm names
            return [ipc.LoadFailed(message=f"{type(error).__name__}: {error}")]
        self._mlx.adopt(self._engine)
        loaded = ipc.Loaded(
            device=device_name(),
            dtype=model.dtype,
            memory_bytes=mx.get_active_memory(),
            batched=self._engine.layout.batchable,
        )
        return [loaded, self._engine.stats()]

    def _start(self, order: ipc.Generate) -> None:
        task = self._loop.create_task(self._generate(order))
        self._preparing[order.id] = task
        task.add_done_callback(lambda _: self._preparing.pop(order.id))

    async def _generate(self, order: ipc.Generate) -> None:
        assert self._preparer is not None, "the daemon asks only after Loaded"
        assert self._engine is not None, "the daemon asks only after Loaded"
        try:
            request = await self._loop.run_in_executor(self._tokenizing, self._preparer.prepare, order)
        except OsaurusError as error:
            self._refuse(order, error.code, error.message, error.param)
        except Exception as error:  # noqa: BLE001  a template or tokenizer may raise anything; it is this request's
            reason = f"the prompt could not be made: {type(error).__name__}: {error}"
            self._refuse(order, ErrorCode.INVALID_REQUEST, reason, None)
        else:
            self._mlx.post(partial(self._engine.add, request))

    def _refuse(self, order: ipc.Generate, code: ErrorCode, reason: str, param: str | None) -> None:
        self._outbox.send([ipc.Failed(id=order.id, code=code, message=reason, param=param)])

    def _cancel(self, id_: int) -> None:
        if task := self._preparing.get(id_):
            task.cancel()
        # Also then, for the task may just have handed its request over.
        if self._engine is not None:
            self._mlx.post(partial(self._engine.cancel, id_))


async def serve(fd: int) -> None:
    """Run a session over the inherited socket `fd`."""
    outbox = Outbox(fd, asyncio.get_running_loop())
    reader, _ = await ipc.connect(fd)
    session = Session(ipc.FrameReader(reader, ipc.TO_WORKER), outbox)
    with contextlib.closing(outbox), contextlib.suppress(ipc.FrameError):
        await session.run()


def _give_up(reason: str) -> NoReturn:
    """End this process with `reason` as the last line of standard error, where the daemon looks for it."""
    print(reason, file=sys.stderr, flush=True)  # noqa: T201  standard error is the daemon's channel for last words
    os._exit(1)
