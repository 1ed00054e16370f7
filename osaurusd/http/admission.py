"""Admission control: how many requests, bytes of bodies and seconds the clients may use."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import TypeVar

from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config, Limits
from osaurusd.errors import OsaurusError, TimeLimitExceeded, TooManyRequests

T = TypeVar("T")

ERROR_EVENT_SECONDS = 5.0
"""How long after its deadline a stream may take to send its error event; then its connection is aborted."""


class Admission:
    """Counts the requests and the bytes in flight over all applications that share it.

    Args:
        config: returns the configuration in force; called whenever a limit is needed.

    Attributes:
        requests: the requests in flight.
        buffered: the bytes of their bodies and images.
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self.requests = 0
        self.buffered = BufferedBytes(config)
        self._rejections: list[Callable[[], OsaurusError]] = []
        self._changed = asyncio.Event()

    @property
    def limits(self) -> Limits:
        return self._config().limits

    def close(self, rejection: Callable[[], OsaurusError]) -> None:
        """Reject new requests, with the error that `rejection` builds. Requests in flight continue."""
        self._rejections.append(rejection)

    def reopen(self, rejection: Callable[[], OsaurusError]) -> None:
        """Undo a `close`. Requests are accepted again unless there was another one, as when the daemon shuts down."""
        self._rejections.remove(rejection)

    def check_open(self) -> None:
        """Check that requests are accepted.

        Raises:
            OsaurusError: the daemon is draining or shutting down.
        """
        if self._rejections:
            raise self._rejections[-1]()

    async def wait_until_unused(self) -> None:
        """Wait until no request is in flight."""
        while self.requests:
            self._changed.clear()
            await self._changed.wait()

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Count one request while the block runs.

        Raises:
            TooManyRequests: `limits.max_requests` requests are in flight.
        """
        if self.requests >= self.limits.max_requests:
            raise TooManyRequests(
                f"{self.requests} requests are in flight, the most that `limits.max_requests` allows; retry later"
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._changed.set()


class Deadline:
    """The time limit of one request.

    Args:
        seconds: `limits.request_seconds`; 0 means no limit.
        started_at: when the request started, on the loop's clock.
    """

    def __init__(self, seconds: float, started_at: float) -> None:
        self._seconds = seconds
        self._at = started_at + seconds if seconds else None
        self._timeout = asyncio.timeout_at(self._at)

    @contextlib.asynccontextmanager
    async def enforce(self) -> AsyncIterator[None]:
        """Cancel the block at the deadline. Usable once.

        Raises:
            TimeLimitExceeded: the deadline passed.
        """
        async with self._mapped(self._timeout):
            yield

    def items(self, source: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Yield the items of `source`, and raise `TimeLimitExceeded` at the deadline.

        The block in `enforce` gets `ERROR_EVENT_SECONDS` more, so that a stream can report the error.
        """
        if self._at is None:
            return source
        self._timeout.reschedule(self._at + ERROR_EVENT_SECONDS)
        return self._limited(source)

    async def _limited(self, source: AsyncGenerator[T]) -> AsyncGenerator[T]:
        async with contextlib.aclosing(source):
            while True:
                async with self._mapped(asyncio.timeout_at(self._at)):
                    try:
                        item = await anext(source)
                    except StopAsyncIteration:
                        return
                yield item

    @contextlib.asynccontextmanager
    async def _mapped(self, limit: asyncio.Timeout) -> AsyncIterator[None]:
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeLimitExceeded(
                f"the request took longer than {self._seconds:g} s (`limits.request_seconds`)"
            ) from error
