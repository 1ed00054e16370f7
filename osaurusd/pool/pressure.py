"""Returning memory to the system when it is short of it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from osaurusd.log import get_logger
from osaurusd.platform import memory
from osaurusd.platform.memory import PressureLevel

log = get_logger(__name__)

POLL_SECONDS = 2.0

# Caches that grew again are dropped again, but not so often that they become useless.
REPEAT_SECONDS = 60.0


class MemoryUser(Protocol):
    """What can return memory: the pool."""

    def drop_caches(self) -> None: ...

    def unload_unused(self) -> None: ...


class PressureRelief(Collector):
    """Watches the system's memory pressure, drops caches if it rises, and unloads idle models if it is critical.

    It polls, because the kernel delivers notifications through libdispatch, which Python cannot use.

    Args:
        user: returns the memory.
        read: returns the level; None if the system has none.
    """

    def __init__(self, user: MemoryUser, read: Callable[[], PressureLevel | None] = memory.pressure_level) -> None:
        self._user = user
        self._read = read
        self._level = read()
        self._acted_at = -math.inf

    async def run(self) -> None:
        """Watch until cancelled; return at once if the system does not report its memory pressure."""
        clock = asyncio.get_running_loop().time
        while self._level is not None:
            self.check(clock())
            await asyncio.sleep(POLL_SECONDS)

    def check(self, now: float) -> None:
        """Read the level, and act if it has risen or stays raised."""
        previous, level = self._level, self._read()
        if level is None or previous is None:
            return
        self._level = level
        if level is not previous:
            log.info("memory pressure", level=level.name.lower(), previous=previous.name.lower())
        if level is PressureLevel.NORMAL:
            self._acted_at = -math.inf
        elif level > previous or now >= self._acted_at + REPEAT_SECONDS:
            self._acted_at = now
            self._relieve(level)

    def _relieve(self, level: PressureLevel) -> None:
        self._user.drop_caches()
        if level is PressureLevel.CRITICAL:
            self._user.unload_unused()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Report the level at each scrape, on systems that have one."""
        if self._level is not None:
            yield GaugeMetricFamily(
                "osaurus_memory_pressure_level", "Memory pressure: 1 normal, 2 warning, 4 critical.", self._level
            )
