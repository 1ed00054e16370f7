"""Running and recent requests: which client API asked which model, how many tokens, how fast. Never their contents.

The HTTP layer opens an entry for each admitted request, and the inference service adds what the model did. A response
that runs in the background outlives its HTTP request, and a WebSocket carries many: the service then opens entries.
"""

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from enum import StrEnum

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.wire.errors import ErrorCode

MAX_FINISHED = 200
"""Finished requests that are kept."""


class RequestState(StrEnum):
    """State of a request; `cancelled` means that its client disconnected or that it was stopped."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Origin(msgspec.Struct, frozen=True):
    """The client API and the endpoint of a request, without version prefix and parameters."""

    protocol: str
    endpoint: str


_UNKNOWN = Origin("other", "")
_origin: ContextVar[Origin] = ContextVar("origin", default=_UNKNOWN)
_current: ContextVar["ActiveRequest | None"] = ContextVar("request", default=None)


class ActiveRequest(msgspec.Struct, eq=False):
    """One request.

    Attributes:
        time: when it arrived, in Unix seconds.
        started_at, first_token_at, ended_at: on the clock of the activity.
        status: HTTP status, once known.
        code: the error code, if it failed.
        output_tokens: counted by deltas while running, exact once completed.
        decode_seconds: time that the model needed for the output.
        exact: whether the token counts are final.
        number: position in the order in which requests finished.
        holds: how many blocks track the request; it runs until there are none.
    """

    id: str
    origin: Origin
    time: float
    started_at: float
    model: str | None = None
    status: int | None = None
    code: str | None = None
    cancelled: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    decode_seconds: float = 0.0
    first_token_at: float | None = None
    ended_at: float | None = None
    exact: bool = False
    number: int = 0
    holds: int = 0

    @property
    def state(self) -> RequestState:
        if self.ended_at is None:
            return RequestState.RUNNING
        if self.code is not None or (self.status is not None and self.status >= 400):
            return RequestState.FAILED
        return RequestState.CANCELLED if self.cancelled else RequestState.COMPLETED

    def fail(self, code: str, status: int | None = None) -> None:
        """Record why the request failed."""
        self.code = code
        if status is not None:
            self.status = status

    def prompt_processed(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Record a prompt; a request may have several."""
        self.prompt_tokens = (self.prompt_tokens or 0) + prompt_tokens
        self.cached_tokens += cached_tokens

    def token_generated(self, now: float) -> None:
        """Count a token of the output."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.output_tokens += 1

    def output_completed(
        self, prompt_tokens: int, cached_tokens: int, output_tokens: int, decode_seconds: float
    ) -> None:
        """Record the exact figures of a completed request."""
        if prompt_tokens:  # otherwise the prompt was only counted
            self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self.output_tokens, self.decode_seconds = output_tokens, decode_seconds
        self.exact = True


class Activity:
    """The running requests, and the last ones that finished.

    Args:
        clock: monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.clock = clock
        self._wall_clock = wall_clock
        self._running: dict[ActiveRequest, None] = {}  # a set that keeps the order
        self._finished: deque[ActiveRequest] = deque(maxlen=MAX_FINISHED)
        self.finished_count = 0

    @property
    def running(self) -> list[ActiveRequest]:
        """The running requests, oldest first."""
        return list(self._running)

    def finished(self, after: int = 0) -> list[ActiveRequest]:
        """Return the finished requests with a greater `number`, in the order in which they finished."""
        return [request for request in self._finished if request.number > after]

    @contextlib.contextmanager
    def track_http(self) -> Iterator[ActiveRequest]:
        """Open an entry while the block handles an HTTP request."""
        request = self._open()
        token = _current.set(request)
        try:
            yield request
        finally:
            _current.reset(token)
            self._release(request)

    @contextlib.contextmanager
    def track_model(self, model: str) -> Iterator[ActiveRequest]:
        """Add the use of a model to the current request, and record how that ends."""
        current = _current.get()
        request = self._open() if current is None else self._hold(current)
        request.model = model
        try:
            yield request
        except (GeneratorExit, asyncio.CancelledError):
            # A reader may stop once it has everything.
            request.cancelled |= not request.exact
            raise
        except Exception as error:
            request.fail(error.code if isinstance(error, OsaurusError) else ErrorCode.INTERNAL_ERROR)
            raise
        finally:
            self._release(request)

    def _open(self) -> ActiveRequest:
        # Not the id of the HTTP request, which its client may choose.
        return self._hold(ActiveRequest(uuid.uuid4().hex, _origin.get(), self._wall_clock(), self.clock()))

    def _hold(self, request: ActiveRequest) -> ActiveRequest:
        """Keep a request among the running ones; one that continues in the background has finished before."""
        request.holds += 1
        if request.ended_at is not None:
            request.ended_at = None
            with contextlib.suppress(ValueError):
                self._finished.remove(request)
        self._running[request] = None
        return request

    def _release(self, request: ActiveRequest) -> None:
        request.holds -= 1
        if request.holds == 0:
            del self._running[request]
            request.ended_at = self.clock()
            self.finished_count += 1
            request.number = self.finished_count
            self._finished.append(request)


def set_origin(protocol: str, endpoint: str) -> None:
    """Set the origin of the requests of the current context."""
    _origin.set(Origin(protocol, endpoint))
