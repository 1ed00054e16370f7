"""What clients may take of what is there for all: requests at once, bytes of bodies, connections, time."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.config import Config, Limits
from osaurusd.errors import OsaurusError, TimeLimitExceeded, TooManyRequests

T = TypeVar("T")

SPARE_DESCRIPTORS = 96
"""Kept from connections: for workers, downloads, logs, state, and what is just being closed."""

CUT_SECONDS = 5.0
"""How long after its time a request may take to tell that; then its client is one that hardly reads."""

_ADMIN_PREFIX = "/v0/"


class Gate:
    """Counts what is under way, for all applications that share it.

    Args:
        config: the configuration in force, asked whenever a limit is needed.
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._read = config
        self.requests = 0
        self.buffered_bytes = 0

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._read()

    @property
    def limits(self) -> Limits:
        return self._read().limits

    def check(self) -> None:
        """Raise TooManyRequests if there is no room for one more."""
        if self.requests >= self.limits.max_requests:
            raise TooManyRequests(
                f"{self.requests} requests are being answered or wait, which is what `limits.max_requests` allows; "
                "try again in a moment"
            )

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """One of the requests under way while the block runs; raises as `check` does."""
        self.check()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def hold(self, count: int) -> None:
        """Take that many bytes in, which are given back with `free`, also if this raises TooManyRequests.

        A body that is alone may be of any size, for how large one may be is another limit.
        """
        others = self.buffered_bytes
        self.buffered_bytes += count
        if others and self.buffered_bytes > self.limits.max_buffered_bytes:
            raise TooManyRequests(
                "the bodies of the requests under way take all that `limits.max_buffered_bytes` allows; "
                "try again in a moment"
            )

    def free(self, count: int) -> None:
        self.buffered_bytes -= count


GATE = web.AppKey("GATE", Gate)
FAULT = web.RequestKey("FAULT", OsaurusError)
"""What is wrong with a request as HTTP, if anything is."""

HELD = web.RequestKey("HELD", int)
"""Bytes that a request has taken of `limits.max_buffered_bytes`."""

BEGAN = web.RequestKey("BEGAN", float)
"""When a request's head had arrived, on the loop's clock."""


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what is wrong as HTTP, and before its body is read what would be one request to a model too many."""
    if (fault := request.get(FAULT)) is not None:
        raise fault
    request[BEGAN] = asyncio.get_running_loop().time()
    if request.method == hdrs.METH_POST and not request.path.startswith(_ADMIN_PREFIX):
        request.app[GATE].check()
    try:
        return await handler(request)
    finally:
        request.app[GATE].free(request.get(HELD, 0))


def max_connections(limits: Limits) -> int:
    """How many connections a listener may have, as far as there are descriptors for two listeners."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return limits.max_connections
    return min(limits.max_connections, max(1, (descriptors - SPARE_DESCRIPTORS) // 2))


class Deadline:
    """When a request to a model must have been answered, if ever: `limits.request_seconds` after it began."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._seconds = request.app[GATE].limits.request_seconds
        self._at = request[BEGAN] + self._seconds if self._seconds else None

    @contextlib.asynccontextmanager
    async def enforced(self) -> AsyncGenerator[None]:
        """End what the block waits for at the deadline.

        Raises:
            TimeLimitExceeded: it has come.
        """
        timeout = asyncio.timeout_at(self._at)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise TimeLimitExceeded(
                f"the request took longer than the {self._seconds:g} s that `limits.request_seconds` allows"
            ) from error

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """Cut the connection if `CUT_SECONDS` after the deadline the block still runs, as it does for a slow reader."""
        transport = self._request.transport
        if self._at is None or transport is None:
            yield
            return
        cut = asyncio.get_running_loop().call_at(self._at + CUT_SECONDS, transport.abort)
        try:
            yield
        finally:
            cut.cancel()

    def over(self, events: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """The same events, none of them after the deadline; raises as `enforced` does."""
        return events if self._at is None else self._each(events)

    async def _each(self, events: AsyncGenerator[T]) -> AsyncGenerator[T]:
        async with contextlib.aclosing(events):
            while True:
                async with self.enforced():
                    try:
                        event = await anext(events)
                    except StopAsyncIteration:
                        return
                yield event
