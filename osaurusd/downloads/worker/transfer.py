"""Receiving files: parts of them at once, each asked for again until it has come."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from osaurusd.downloads.worker.choice import HubFile
from osaurusd.downloads.worker.failure import Changed, Expired, PullError, RangesIgnored, Retry
from osaurusd.downloads.worker.meter import Meter
from osaurusd.downloads.worker.partial import Part, Partial
from osaurusd.downloads.worker.source import Source

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

SYNC_BYTES = 256 * 1024 * 1024
"""So much may be lost if the whole machine goes down."""

_TIMES = 4

# What passes: a connection that cannot be made, breaks off, or stalls.
TROUBLE = (Retry, aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class Limits:
    """How many connections there may be; for how many seconds one may give nothing, and asking lead to nothing."""

    connections: int
    stall_seconds: float
    patience_seconds: float


class Patience:
    """Pauses between tries, longer each time, until something comes or patience is at an end.

    Args:
        seconds: after which nothing more is tried, counted from the last success.
        tell: takes what holds things up, for people.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self.succeeded()

    def succeeded(self) -> None:
        """Something came; begin anew."""
        self._since = time.monotonic()
        self._failures = 0

    async def pause(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            PullError: it has been tried for long enough.
        """
        what = str(error) or type(error).__name__
        waited = time.monotonic() - self._since
        if self._failures and waited > self._seconds:
            raise PullError(
                f"{what}; given up after {waited:.0f} s without a byte, and the next pull goes on here"
            ) from error
        self._failures += 1
        if self._failures == 1 and isinstance(error, Expired):
            return
        self._tell(what)
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 1, 10))
        # Jitter: connections that broke together must not come back together.
        await asyncio.sleep(max(longest * random.uniform(0.5, 1), _asked_to_wait(error)))


class Transfer:
    """Receives the files of one repo. All of them share the connections.

    Args:
        source: answers for ranges.
        limits: how many connections, and how patient.
        meter: counts what comes.
    """

    def __init__(self, source: Source, limits: Limits, meter: Meter) -> None:
        self._source = source
        self._limits = limits
        self._meter = meter
        self._slots = asyncio.Semaphore(limits.connections)

    async def receive(self, file: HubFile, partial: Partial) -> None:
        """Receive what is missing of a file.

        Raises:
            PullError: it does not come, or is another one each time.
            OSError: the disk is full, or cannot be written.
        """
        reason = ""
        for _ in range(_TIMES):
            syncing = _Syncing(partial)
            try:
                await together(self._receive_part(file, partial, part, syncing) for part in partial.parts if part.left)
            except (Changed, RangesIgnored) as error:
                reason = str(error)
                again = isinstance(error, RangesIgnored)
            else:
                return
            finally:
                await syncing.end()
            self._meter.present -= partial.received
            partial.restart(whole=again)
        raise PullError(f"{reason}; it was begun {_TIMES} times")

    async def _receive_part(self, file: HubFile, partial: Partial, part: Part, syncing: "_Syncing") -> None:
        patience = Patience(self._limits.patience_seconds, self._tell)
        while part.left:
            try:
                async with self._slots:
                    await self._read(file, partial, part, patience, syncing)
            except aiohttp.ClientConnectorCertificateError as error:
                raise PullError(f"{file.name}: {error}") from error
            except TROUBLE as error:
                await patience.pause(error)

    async def _read(self, file: HubFile, partial: Partial, part: Part, patience: Patience, syncing: "_Syncing") -> None:
        reply = await self._source.open(file, part.begin + part.done, part.end)
        async with reply.response as response:
            _expect_same(file, partial, reply.validator)
            async for piece in response.content.iter_any():
                # A server may send more than was asked for.
                piece = piece[: part.left]
                partial.write(part, piece)
                self._meter.arrived(len(piece))
                patience.succeeded()
                syncing.consider()
                if not part.left:
                    return
        raise Retry(f"{file.name}: the connection broke off")

    def _tell(self, trouble: str) -> None:
        self._meter.note = trouble


class _Syncing:
    """Has the disk take over what was written, beside what goes on."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._running: asyncio.Task[None] | None = None

    def consider(self) -> None:
        """Begin, if much has been written and nothing runs."""
        if self._partial.unsynced >= SYNC_BYTES and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(asyncio.to_thread(self._partial.sync))

    async def end(self) -> None:
        """Wait until nothing runs. A disk that cannot sync fails the next write or the end of the file."""
        if self._running is not None:
            await asyncio.wait({self._running})


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do everything at once. The first failure ends the rest, and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _expect_same(file: HubFile, partial: Partial, validator: str | None) -> None:
    if validator is None:
        return
    if partial.validator is None:
        partial.expect(validator)
    elif validator != partial.validator:
        raise Changed(f"{file.name}: it changes while it is downloaded")


def _asked_to_wait(error: Exception) -> float:
    after = error.after if isinstance(error, Retry) else None
    return min(after or 0.0, LONGEST_PAUSE_SECONDS)
