"""Time for workers: the clock that tests replace, and the detection of workers that hang."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

READ_GRACE_SECONDS = 1.0
"""How long a daemon that was suspended itself gets to read frames before it may declare a worker hung."""

T = TypeVar("T")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that deals with time; a running loop is the default everywhere."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer: ...


async def sleep(clock: Clock, seconds: float) -> None:
    """Sleep by `clock`."""
    woken = asyncio.Event()
    timer = clock.call_at(clock.time() + seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


class Watchdog:
    """Detects a worker that has work but sends nothing for `limit` seconds.

    Attributes:
        hung: set once the worker counts as hung.
        progress_at: when the worker last sent something or got its first work, in the clock's seconds.
    """

    def __init__(self, limit: float, clock: Clock) -> None:
        self.hung = asyncio.Event()
        self.progress_at = clock.time()
        self._limit = limit
        self._clock = clock
        self._timer: Timer | None = None

    def arm(self) -> None:
        """Watch: the worker has work from now on."""
        self.progress_at = self._clock.time()
        if self._timer is None:
            self._timer = self._clock.call_at(self.progress_at + self._limit, self._check)

    def disarm(self) -> None:
        """Stop watching: the worker is idle or has exited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def touch(self) -> float:
        """Record progress; return the current time."""
        self.progress_at = self._clock.time()
        return self.progress_at

    async def guard(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Watch during `work`; return its result, or None after cancelling it because the worker hung."""
        self.arm()
        working = asyncio.create_task(work)
        hanging = asyncio.create_task(self.hung.wait())
        try:
            await asyncio.wait({working, hanging}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            self.disarm()
            for task in (working, hanging):
                task.cancel()
            await asyncio.gather(working, hanging, return_exceptions=True)

    def _check(self, *, after_grace: bool = False) -> None:
        """Runs only when the limit may have passed: progress does not touch the timer, because it is frequent."""
        due = self.progress_at + self._limit
        now = self._clock.time()
        if now < due:
            self._timer = self._clock.call_at(due, self._check)
        elif not after_grace:
            grace = min(READ_GRACE_SECONDS, self._limit)
            self._timer = self._clock.call_at(now + grace, lambda: self._check(after_grace=True))
        else:
            self._timer = None
            self.hung.set()
