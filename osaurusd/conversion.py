"""Conversion of requests: in a thread if it takes long, so that other requests are served meanwhile."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY_BYTES = 1024 * 1024
"""Decoding more takes so long that other tasks run afterwards."""

# Long texts and images have few values for their size.
_MANY_VALUES = 2048

_takes_long: ContextVar[bool] = ContextVar("takes_long", default=False)
"""Whether the request that the current task converts has many values."""


def estimate(body: bytes | bytearray) -> None:
    """Estimate by the JSON of a request how long its conversion takes in this task."""
    _takes_long.set(len(body) > LARGE_BODY_BYTES and body.count(b",") > _MANY_VALUES)


async def convert(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that converts or checks what the task has decoded; raises what it raises.

    Other requests than those with many values are not worth a thread, and the memory that a thread allocates for texts
    is returned to the system later.
    """
    if not _takes_long.get():
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
