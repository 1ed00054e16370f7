"""The thread that owns MLX: it loads, prefills, decodes and frees; no other thread touches an array."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.device import is_device_failure

Emit = Callable[[Sequence[framing.Outgoing]], None]
Work = Callable[[], Sequence[framing.Outgoing] | None]

# A second failed step without a successful decode step in between means that the model is broken.
MAX_FAILED_STEPS = 1


class Engine(Protocol):
    """What the thread steps. All methods run on it; any thread may read the properties."""

    @property
    def busy(self) -> bool:
        """Whether there is something to step."""

    @property
    def progress(self) -> int:
        """A number that increases with every forward pass."""

    @property
    def reserved_bytes(self) -> int:
        """What weights and running requests may grow to."""

    @property
    def batching_seconds(self) -> float:
        """How long to wait for more requests before the first step; 0 once a step has started."""

    def add(self, request: Any) -> list[messages.Frame]:
        """Queue a request that the runner has prepared, or reject it."""

    def cancel(self, request_id: int) -> None:
        """Drop a request; unknown ids are ignored."""

    def decode(self) -> Sequence[framing.Outgoing]:
        """Run a decode step, if any sequence decodes."""

    def prefill(self) -> Sequence[framing.Outgoing]:
        """Process waiting tokens within this step's budget."""

    def drop_all(self) -> list[int]:
        """Drop all requests after a failure; return their ids."""

    def drop_caches(self) -> None:
        """Return the memory of caches to the system."""

    def stats(self) -> messages.Stats:
        """Return the memory in use."""


class MlxThread:
    """Runs work that other threads post, in order, and steps the engine while it is busy.

    Args:
        emit: receives the frames of each step; called on this thread.
        abort: called with the reason when generation cannot continue; does not return.
        expects_requests: whether more requests are about to be posted; called on this thread.
        clock: measures how long the first requests wait for others.
    """

    def __init__(
        self,
        emit: Emit,
        abort: Callable[[str], None],
        expects_requests: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit = emit
        self._abort = abort
        self._expects_requests = expects_requests
        self._clock = clock
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._failed_steps = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def post(self, work: Work) -> None:
        """Run `work` between two steps and emit the frames that it returns. Safe on any thread."""
        self._inbox.put(work)

    def adopt(self, engine: Engine) -> None:
        """Step this engine from now on. Only posted work may call this."""
        self._engine = engine

    def _run(self) -> None:
        try:
            while True:
                self._run_posted_work()
                if self._engine is not None and self._engine.busy:
                    self._wait_for_batch(self._engine)
                    self._step(self._engine)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  without this thread the process would hang
            self._abort(f"the MLX thread failed: {type(error).__name__}: {error}")

    def _run_posted_work(self) -> None:
        """Run all posted work; block only if the engine is idle."""
        idle = self._engine is None or not self._engine.busy
        try:
            self._run_work(self._inbox.get(block=idle))
            while True:
                self._run_work(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _wait_for_batch(self, engine: Engine) -> None:
        """Wait briefly for more requests before the first step: prompts that share passes finish much sooner."""
        deadline = self._clock() + engine.batching_seconds
        while self._expects_requests() and engine.batching_seconds and (left := deadline - self._clock()) > 0:
            try:
                self._run_work(self._inbox.get(timeout=left))
            except queue.Empty:
                return

    def _run_work(self, work: Work) -> None:
        if frames := work():
            self._emit(frames)

    def _step(self, engine: Engine) -> None:
        try:
            # Emit decoded tokens before prefill, which may fail.
            if frames := engine.decode():
                self._emit(frames)
                self._failed_steps = 0
            if frames := engine.prefill():
                self._emit(frames)
        except Exception as error:  # noqa: BLE001  an exception of the model fails the requests, not the process
            if is_device_failure(error):
                self._abort(f"the GPU failed: {error}")
            self._recover(engine, error)

    def _recover(self, engine: Engine, error: Exception) -> None:
        """Fail all requests and continue without them, unless the previous step failed as well."""
        reason = f"the model failed while generating: {type(error).__name__}: {error}"
        lost = engine.drop_all()
        self._emit([messages.Failed(id=id_, code=ErrorCode.INTERNAL_ERROR, message=reason) for id_ in lost])
        self._failed_steps += 1
        if self._failed_steps > MAX_FAILED_STEPS:
            self._abort(reason)
