"""The one thread that owns MLX: it loads, prefills, decodes and frees, and nothing else touches an array."""

import queue
import threading
import time
from collections.abc import Callable

from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.engine import Engine

Emit = Callable[[list[messages.Frame]], None]
Work = Callable[[], list[messages.Frame] | None]


class MlxThread:
    """Runs work that other threads post, in order, and steps the engine while it has sequences.

    Args:
        emit: takes the frames of each step; called on this thread.
        give_up: called with the reason when generation cannot go on; does not return.
        expecting: whether further requests are about to be posted; called on this thread.
    """

    def __init__(self, emit: Emit, give_up: Callable[[str], None], expecting: Callable[[], bool]) -> None:
        self._emit = emit
        self._give_up = give_up
        self._expecting = expecting
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._failed_steps = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def post(self, work: Work) -> None:
        """Have `work` done between two steps, and the frames that it returns sent. From any thread."""
        self._inbox.put(work)

    def adopt(self, engine: Engine) -> None:
        """Step this engine from now on. Only from posted work."""
        self._engine = engine

    def _run(self) -> None:
        try:
            while True:
                self._do_posted_work()
                if self._engine is not None and self._engine.busy:
                    self._gather(self._engine)
                    self._step(self._engine)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  a process without this thread would live on, dead inside
            self._give_up(f"the MLX thread failed: {type(error).__name__}: {error}")

    def _do_posted_work(self) -> None:
        """Do all that is posted; wait for some only if there is nothing to generate."""
        idle = self._engine is None or not self._engine.busy
        try:
            self._do(self._inbox.get(block=idle))
            while True:
                self._do(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _gather(self, engine: Engine) -> None:
        """Wait a moment for prompts that come with the first one: begun together, they are through much sooner."""
        until = time.monotonic() + engine.gathering_seconds
        while self._expecting() and engine.gathering_seconds and (left := until - time.monotonic()) > 0:
            try:
                self._do(self._inbox.get(timeout=left))
            except queue.Empty:
                return

    def _do(self, work: Work) -> None:
        if frames := work():
            self._emit(frames)

    def _step(self, engine: Engine) -> None:
        try:
            # Sent before anything else can fail: tokens that are decoded are not lost.
            if frames := engine.decode():
                self._emit(frames)
                self._failed_steps = 0
            if frames := engine.prefill():
                self._emit(frames)
        except Exception as error:  # noqa: BLE001  whatever a model raises costs its requests, not the process
            self._recover(engine, error)

    def _recover(self, engine: Engine, error: Exception) -> None:
        """Fail the batch and go on with an empty one; a second failure in a row means the model is broken."""
        reason = f"the model failed while generating: {type(error).__name__}: {error}"
        lost = engine.drop_all()
        self._emit([messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) for id_ in lost])
        self._failed_steps += 1
        if self._failed_steps > 1:
            self._give_up(reason)
