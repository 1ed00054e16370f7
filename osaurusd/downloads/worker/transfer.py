"""Receiving files: several ranges at a time, each retried until it is complete."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import httpx2

from osaurusd.downloads import messages
from osaurusd.downloads.worker.errors import (
    FileChanged,
    PullError,
    RangesUnsupported,
    TransientError,
    UrlExpired,
    certificate_error,
    describe_failure,
)
from osaurusd.downloads.worker.partial import Part, Partial
from osaurusd.downloads.worker.ranges import Source
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.rpc.child import Send
from osaurusd.wire.pulls import PullStage

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 60.0

SYNC_BYTES = 256 * 1024 * 1024
"""Data is synced after this many bytes, which limits the loss after a power failure."""

REPORT_INTERVAL_SECONDS = 0.25

_RATE_WINDOW_SECONDS = 5.0
_MAX_ATTEMPTS = 4

# Errors after which a request is repeated: no connection, a broken one, or a stalled one.
_RETRIED = (TransientError, httpx2.TransportError)


@dataclass(frozen=True)
class TransferLimits:
    """Limits of a pull.

    Attributes:
        connections: maximum number of concurrent connections.
        stall_seconds: a connection that receives nothing for this long is replaced.
        retry_seconds: a pull that receives nothing for this long despite retries fails.
    """

    connections: int
    stall_seconds: float
    retry_seconds: float


class ProgressReporter:
    """Counts bytes and reports them to the daemon.

    Attributes:
        present: bytes that are on the disk, including those of earlier runs, which do not count for the rate.
        total: bytes of all files; 0 while unknown.
        note: the current obstacle, such as an unreachable hub.

    Args:
        send: sends a frame to the daemon.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.stage = PullStage.RESOLVING
        self.commit: str | None = None
        self.note: str | None = None
        self.present = 0
        self.total = 0
        self.hashed = 0
        self.to_hash = 0
        self._received = 0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._last: messages.Progress | None = None

    def add_received(self, count: int) -> None:
        """Count bytes that were received over the network."""
        self.present += count
        self._received += count
        self.note = None

    def set_note(self, note: str) -> None:
        self.note = note

    def report(self) -> None:
        """Send the progress if it has changed."""
        frame = self._current()
        if frame != self._last:
            self._last = frame
            self._send(frame)

    async def run(self) -> None:
        """Report periodically until cancelled."""
        while True:
            self.report()
            await asyncio.sleep(REPORT_INTERVAL_SECONDS)

    def _current(self) -> messages.Progress:
        # Files are hashed while others are downloaded; only hashing after the last byte counts as a stage.
        verifying = self.stage is PullStage.DOWNLOADING and self.total > 0 and self.present >= self.total
        return messages.Progress(
            stage=PullStage.VERIFYING if verifying else self.stage,
            done=self.present,
            total=self.total,
            hashed=self.hashed,
            to_hash=self.to_hash,
            bytes_per_second=round(self._rate()),
            commit=self.commit,
            note=self.note,
        )

    def _rate(self) -> float:
        now = time.monotonic()
        self._samples.append((now, self._received))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        (first_time, first_count), (last_time, last_count) = self._samples[0], self._samples[-1]
        return (last_count - first_count) / (last_time - first_time) if last_time > first_time else 0.0


class Backoff:
    """Exponential backoff between retries, up to a total time without success.

    Args:
        limit_seconds: fail after this time without success.
        notify: receives the reason for each delay.
    """

    def __init__(self, limit_seconds: float, notify: Callable[[str], None]) -> None:
        self._limit_seconds = limit_seconds
        self._notify = notify
        self._last_success = time.monotonic()
        self._failures = 0

    def reset(self) -> None:
        """Start over after a success."""
        self._last_success = time.monotonic()
        self._failures = 0

    async def wait(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            PullError: the time limit is reached.
        """
        reason = describe_failure(error)
        elapsed = time.monotonic() - self._last_success
        if self._failures and elapsed > self._limit_seconds:
            raise PullError(f"{reason}; no data for {elapsed:.0f} s; pull again to resume") from error
        self._failures += 1
        if self._failures == 1 and isinstance(error, UrlExpired):
            return
        self._notify(reason)
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(self._failures - 1, 10))
        requested = error.retry_after if isinstance(error, TransientError) else None
        # Jitter keeps connections that failed together from retrying together.
        await asyncio.sleep(max(delay * random.uniform(0.5, 1), min(requested or 0.0, MAX_DELAY_SECONDS)))


class Transfer:
    """Receives the files of one model over shared connections.

    Args:
        source: opens ranges of files.
        limits: the limits of the pull.
        progress: counts received bytes.
    """

    def __init__(self, source: Source, limits: TransferLimits, progress: ProgressReporter) -> None:
        self._source = source
        self._limits = limits
        self._progress = progress
        self._connections = asyncio.Semaphore(limits.connections)

    async def receive(self, file: HubFile, partial: Partial) -> None:
        """Receive the missing parts of a file.

        Raises:
            PullError: the file is not available, or changes with each attempt.
            OSError: the disk is full or not writable.
        """
        reason = ""
        for _ in range(_MAX_ATTEMPTS):
            syncer = _Syncer(partial)
            try:
                parts = [part for part in partial.parts if part.missing]
                await run_all(self._receive_part(file, partial, part, syncer) for part in parts)
            except (FileChanged, RangesUnsupported) as error:
                reason = str(error)
                whole = isinstance(error, RangesUnsupported)
            else:
                return
            finally:
                await syncer.wait()
            self._progress.present -= partial.received
            partial.restart(whole=whole)
        raise PullError(f"{reason}; giving up after {_MAX_ATTEMPTS} attempts")

    async def _receive_part(self, file: HubFile, partial: Partial, part: Part, syncer: "_Syncer") -> None:
        backoff = Backoff(self._limits.retry_seconds, self._progress.set_note)
        while part.missing:
            try:
                async with self._connections:
                    await self._read_range(file, partial, part, backoff, syncer)
            except _RETRIED as error:
                if untrusted := certificate_error(error):
                    raise untrusted from error
                await backoff.wait(error)

    async def _read_range(
        self, file: HubFile, partial: Partial, part: Part, backoff: Backoff, syncer: "_Syncer"
    ) -> None:
        opened = await self._source.open(file, part.begin + part.done, part.end)
        async with contextlib.aclosing(opened.response) as response:
            _check_validator(file, partial, opened.validator)
            async for chunk in response.aiter_raw():
                # A server may send more than requested.
                chunk = chunk[: part.missing]
                partial.write(part, chunk)
                self._progress.add_received(len(chunk))
                backoff.reset()
                syncer.sync_if_needed()
                if not part.missing:
                    return
        raise TransientError(f"{file.name}: the connection was closed early")


class _Syncer:
    """Syncs a partial file to the disk in the background."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._running: asyncio.Task[None] | None = None

    def sync_if_needed(self) -> None:
        if self._partial.unsynced >= SYNC_BYTES and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(asyncio.to_thread(self._partial.sync))

    async def wait(self) -> None:
        """Wait for a running sync. Its error is ignored: the next write or the final sync fails as well."""
        if self._running is not None:
            await asyncio.wait({self._running})


async def run_all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently. The first error cancels the others and is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
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


def _check_validator(file: HubFile, partial: Partial, validator: str | None) -> None:
    if validator is None:
        return
    if partial.validator is None:
        partial.set_validator(validator)
    elif validator != partial.validator:
        raise FileChanged(f"{file.name} has changed during the download")
