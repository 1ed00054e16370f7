"""Conversion of requests: in a thread if it takes long, so that other requests are served meanwhile."""

import asyncio
import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY_BYTES = 1024 * 1024
"""Decoding more takes so long that other tasks run before and after it."""

# Converting less takes a few milliseconds at most.
_MIN_THREAD_BYTES = 64 * 1024

# By commas. Images have few; a long text may have more, and then takes a thread that it does not need.
_MANY_VALUES = 2048

_takes_long: ContextVar[bool] = ContextVar("takes_long", default=False)
"""Whether the request that the current task converts has many values."""

_pause_lock = threading.Lock()


def estimate(body: bytes | bytearray) -> None:
    """Estimate by the JSON of a request how long its conversion takes in this task."""
    _takes_long.set(len(body) > _MIN_THREAD_BYTES and body.count(b",") > _MANY_VALUES)


async def convert(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that converts or checks what the task has decoded; raises what it raises.

    Other requests than those with many values are not worth a thread, and the memory that a thread allocates for texts
    is returned to the system later.
    """
    if not _takes_long.get():
        return function(*args, **kwargs)
    return await asyncio.to_thread(_call, functools.partial(function, *args, **kwargs))


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection while the block creates many objects, none of which is garbage.

    Collections would search all of them several times, and stop all threads meanwhile. Where blocks overlap, the pause
    ends with the first of them, so that a series of requests cannot prevent collections.
    """
    if not _pause_lock.acquire(blocking=False):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _pause_lock.release()


def _call(function: Callable[[], T]) -> T:
    with collection_paused():
        return function()
