"""The asyncio side of a worker: frames in and out, and everything that is not MLX."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

import mlx.core as mx

from osaurusd import __version__, ipc
from osaurusd.errors import OsaurusError
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker import prompts
from osaurusd.worker.engine import Engine, Sequence, stats
from osaurusd.worker.load import Model, device_name, load
from osaurusd.worker.mlx_thread import MlxThread
from osaurusd.worker.text import TextStream

TOKENIZER_THREADS = 2

# Answers of a model that says nothing about its context length end here.
UNKNOWN_CONTEXT_LENGTH = 32768


class Session:
    """One daemon, one model: reads orders until the daemon closes its end or says goodbye."""

    def __init__(self, reader: ipc.FrameReader[ipc.ToWorker], writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._mlx = MlxThread(self._emit, _give_up)
        self._tokenizing = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._model: Model | None = None
        self._engine: Engine | None = None

    async def run(self) -> None:
        """Serve until the daemon is gone."""
        self._mlx.start()
        self._write([ipc.Hello(version=__version__)])
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

    def _load(self, order: ipc.Load) -> None:
        """On the MLX thread."""
        try:
            self._model = load(order)
            self._engine = Engine(self._model.network, self._model.end_tokens, order.wired_limit_bytes)
        except Exception as error:  # noqa: BLE001  model files can be wrong in more ways than mlx_lm names
            self._emit([ipc.LoadFailed(message=f"{type(error).__name__}: {error}")])
            return
        self._mlx.adopt(self._engine)
        loaded = ipc.Loaded(
            device=device_name(),
            dtype=self._model.dtype,
            memory_bytes=mx.get_active_memory(),
            batched=self._engine.batched,
        )
        self._emit([loaded, stats()])

    def _start(self, order: ipc.Generate) -> None:
        task = self._loop.create_task(self._generate(order))
        self._preparing[order.id] = task
        task.add_done_callback(lambda _: self._preparing.pop(order.id))

    async def _generate(self, order: ipc.Generate) -> None:
        try:
            sequence = await self._loop.run_in_executor(self._tokenizing, self._prepare, order)
        except OsaurusError as error:
            self._write([ipc.Failed(id=order.id, code=error.code, message=error.message, param=error.param)])
        except Exception as error:  # noqa: BLE001  a template or tokenizer may raise anything; it is this request's
            reason = f"the prompt could not be made: {type(error).__name__}: {error}"
            self._write([ipc.Failed(id=order.id, code=ErrorCode.INVALID_REQUEST, message=reason, param="messages")])
        else:
            assert self._engine is not None, "the daemon asks only after Loaded"
            self._mlx.post(partial(self._engine.add, sequence))

    def _prepare(self, order: ipc.Generate) -> Sequence:
        """On a tokenizer thread."""
        model = self._model
        assert model is not None, "the daemon asks only after Loaded"
        prompt = prompts.encode(model.tokenizer, order.messages, model.context_length)
        room = (model.context_length or UNKNOWN_CONTEXT_LENGTH) - len(prompt.tokens)
        return Sequence(
            id=order.id,
            prompt=prompt.tokens,
            max_tokens=min(order.max_tokens or room, max(room, 1)),
            sampling=order.sampling,
            text=TextStream(model.tokenizer.detokenizer, [*order.stop, *prompt.stop]),
        )

    def _cancel(self, id_: int) -> None:
        if task := self._preparing.get(id_):
            task.cancel()
        # Also then, for the task may just have handed its sequence over.
        if self._engine is not None:
            self._mlx.post(partial(self._engine.cancel, id_))

    def _emit(self, frames: list[ipc.Frame]) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon is gone and this process is ending
            self._loop.call_soon_threadsafe(self._write, frames)

    def _write(self, frames: Iterable[ipc.Frame]) -> None:
        self._writer.write(ipc.encode(frames))


async def serve(fd: int) -> None:
    """Run a session over the inherited socket `fd`."""
    reader, writer = await ipc.connect(fd)
    session = Session(ipc.FrameReader(reader, ipc.TO_WORKER), writer)
    with contextlib.suppress(ipc.FrameError):
        await session.run()


def _give_up(reason: str) -> NoReturn:
    """End this process with `reason` as the last line of standard error, where the daemon looks for it."""
    print(reason, file=sys.stderr, flush=True)  # noqa: T201  standard error is the daemon's channel for last words
    os._exit(1)
