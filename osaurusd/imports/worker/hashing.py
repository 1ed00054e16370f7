"""SHA-256 of files, computed by threads while other work goes on."""

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from osaurusd.wire.open_files import part_names

_CHUNK_BYTES = 4 * 1024 * 1024
_PENDING_CHUNKS = 4
_REPORT_SECONDS = 0.2


def model_files(source: Path) -> list[Path]:
    """Return the file, and the other parts of a split model; nothing if `source` is not a file."""
    return [source.parent / name for name in part_names(source.name)] if source.is_file() else []


class ByteCounter:
    """Turns chunk sizes into progress reports of bytes done and total bytes."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._done = 0
        self._total = total
        self._progress = progress
        progress(0, total)

    def __call__(self, size: int) -> None:
        self._done += size
        self._progress(self._done, self._total)


class ThreadedHash:
    """A SHA-256 that a thread computes, at most a few chunks behind its caller. A context manager."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def update(self, data: bytes | memoryview) -> None:
        """Hash `data`, which must not change any more."""
        if len(self._pending) >= _PENDING_CHUNKS:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._digest.update, data))

    def hexdigest(self) -> str:
        while self._pending:
            self._pending.popleft().result()
        return self._digest.hexdigest()

    def __enter__(self) -> "ThreadedHash":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


class FileHash:
    """A thread that computes the SHA-256 of files, as if they were one. A context manager, which stops it.

    Attributes:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._result = self._thread.submit(self._run)

    def __enter__(self) -> "FileHash":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def result(self, progress: Callable[[int, int], None]) -> str:
        """Wait for the SHA-256 in hex. Calls `progress` with the bytes hashed and the total bytes.

        Raises:
            OSError: a file could not be read.
        """
        total = sum(path.stat().st_size for path in self.paths)
        progress(0, total)
        while not self._result.done():
            progress(self._hashed, total)
            with contextlib.suppress(TimeoutError):
                self._result.result(_REPORT_SECONDS)
        digest = self._result.result()
        progress(total, total)
        return digest

    def _run(self) -> str:
        for path in self.paths:
            with path.open("rb", buffering=0) as stream:
                offset = 0
                # Not by the position in the file, which threads that read the same open file share.
                while (chunk := os.pread(stream.fileno(), _CHUNK_BYTES, offset)) and not self._stop.is_set():
                    self._digest.update(chunk)
                    offset += len(chunk)
                    self._hashed += len(chunk)
        return self._digest.hexdigest()


def hash_file(path: Path, progress: Callable[[int], None]) -> str:
    """Return the SHA-256 in hex. Calls `progress` with the size of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()
