"""Writing a model's weights as safetensors files, as a stream, with their checksums."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from osaurusd.imports.worker.hashing import ByteCounter, ThreadedHash
from osaurusd.wire.files import write_new_json
from osaurusd.wire.sizes import format_bytes

# The shard size of mlx_lm's own conversion.
MAX_SHARD_BYTES = 5 << 30

_CHUNK_BYTES = 16 * 1024 * 1024
_SYNC_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A tensor to write. `dtype` is a type of the format, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_model(
    dest: Path,
    entries: Sequence[Entry],
    contents: Iterable[Iterable[bytes | memoryview]],
    progress: Callable[[int, int], None],
) -> dict[str, str]:
    """Write `model.safetensors` to `dest`, or shards and their index if it would exceed 5 GiB. Sync them to disk.

    Args:
        dest: an existing folder.
        entries: name, type, shape and size of each tensor.
        contents: for each tensor in the order of `entries`, the parts of its data, which are bytes.
        progress: called with the bytes written and the total bytes.

    Returns:
        The SHA-256 of each safetensors file in hex.

    Raises:
        OSError: a file could not be written.
    """
    total = sum(entry.nbytes for entry in entries)
    count = ByteCounter(total, progress)
    shards = _shards(entries)
    names = _shard_names(len(shards))
    remaining = iter(contents)
    digests = {
        name: _write(dest / name, shard, islice(remaining, len(shard)), count)
        for name, shard in zip(names, shards, strict=True)
    }
    # Let a generator do what it does after the last tensor.
    for _ in remaining:
        raise ValueError("more contents than entries")
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        write_new_json(
            dest / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    return digests


def find_shortage(dest: Path, needed: int) -> str | None:
    """Return why a model's weights do not fit on the disk of a folder, or None if they do."""
    free = shutil.disk_usage(dest).free
    return None if needed <= free else f"the model needs {format_bytes(needed)}, but {format_bytes(free)} are free"


def _shards(entries: Iterable[Entry]) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write(
    path: Path,
    entries: Sequence[Entry],
    contents: Iterator[Iterable[bytes | memoryview]],
    written: Callable[[int], None],
) -> str:
    with ThreadedHash() as digest, path.open("xb", buffering=0) as stream, _ThreadedSync(stream.fileno()) as sync:
        _write_part(stream.fileno(), _encode_header(entries), digest)
        for entry, parts in zip(entries, contents, strict=True):
            size = 0
            for part in parts:
                data = memoryview(part)
                for start in range(0, len(data), _CHUNK_BYTES):
                    chunk = data[start : start + _CHUNK_BYTES]
                    _write_part(stream.fileno(), chunk, digest)
                    sync.add(len(chunk))
                    written(len(chunk))
                size += len(data)
            if size != entry.nbytes:
                raise ValueError(f"{entry.name}: {size} bytes instead of {entry.nbytes}")
        sync.finish()
        return digest.hexdigest()


def _write_part(descriptor: int, data: bytes | memoryview, digest: ThreadedHash) -> None:
    digest.update(data)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _encode_header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for entry in entries:
        offsets = [offset, offset + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.nbytes
    body = json.dumps(header, separators=(",", ":")).encode()
    # Padding keeps the data aligned for readers that map the file.
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body


class _ThreadedSync:
    """Syncs a file to disk while it is written, so that the last sync takes less time. A context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._waiting = 0

    def add(self, size: int) -> None:
        """Note that `size` bytes were written, and sync them when there are enough.

        Raises:
            OSError: an earlier sync failed. The system reports each failure only once.
        """
        self._waiting += size
        if self._waiting < _SYNC_BYTES or (self._running is not None and not self._running.done()):
            return
        if self._running is not None:
            self._running.result()
        self._waiting = 0
        self._running = self._thread.submit(os.fsync, self._descriptor)

    def finish(self) -> None:
        """Sync everything. Raises like `add`."""
        if self._running is not None:
            self._running.result()
        os.fsync(self._descriptor)

    def __enter__(self) -> "_ThreadedSync":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
