"""Writing safetensors files as a stream, with their checksums."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker.hashing import ThreadedHash

Array = npt.NDArray[Any]

# The shard size of mlx_lm's own conversion.
MAX_SHARD_BYTES = 5 << 30

_CHUNK_BYTES = 16 * 1024 * 1024
# NumPy has no BF16; its bits are handled as uint16.
_DTYPES: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "U8": "u1"}


@dataclass(frozen=True)
class Entry:
    """A tensor to write. `dtype` is a key of `_DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def write_safetensors(
    path: Path,
    entries: Sequence[Entry],
    pieces: Iterable[Iterable[Array]],
    written: Callable[[int], None],
) -> str:
    """Create a safetensors file and sync it to disk. Return its SHA-256 in hex.

    Args:
        path: the file to create.
        entries: name, type and shape of each tensor.
        pieces: for each entry, arrays that make up its data in order.
        written: called with the number of data bytes after each chunk.

    Raises:
        OSError: the file could not be written.
    """
    with ThreadedHash() as digest, path.open("xb", buffering=0) as stream:
        header = _encode_header(entries)
        stream.write(header)
        digest.update(header)
        for entry, arrays in zip(entries, pieces, strict=True):
            size = 0
            for array in arrays:
                if array.dtype != np.dtype(_DTYPES[entry.dtype]):
                    raise TypeError(f"{entry.name}: {array.dtype} is not {entry.dtype}")
                size += array.nbytes
                _write_chunks(stream.fileno(), np.ascontiguousarray(array), digest, written)
            if size != entry.nbytes:
                raise TypeError(f"{entry.name}: {size} bytes instead of {entry.nbytes}")
        os.fsync(stream.fileno())
        return digest.hexdigest()


def _write_chunks(descriptor: int, array: Array, digest: ThreadedHash, written: Callable[[int], None]) -> None:
    data = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        digest.update(chunk)
        rest = chunk
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        written(len(chunk))


def shard(sizes: Sequence[int]) -> list[range]:
    """Divide tensors with these sizes in bytes into consecutive shards."""
    shards: list[range] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > MAX_SHARD_BYTES:
            shards.append(range(start, index))
            start, total = index, 0
        total += size
    return [*shards, range(start, len(sizes))]


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


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
