"""Writes safetensors files piece by piece, and checks that one is whole.

The layout is that of the safetensors README: an 8-byte little-endian length, that many bytes of JSON, then the data.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from osaurusd.errors import ImportFailed

# The safetensors library refuses longer ones.
MAX_HEADER_BYTES = 100_000_000

_CHUNK_BYTES = 16 * 1024 * 1024
_ITEM_BYTES = {"F32": 4, "F16": 2, "U32": 4}
_DTYPES: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "U32": "<u4"}


@dataclass(frozen=True)
class Entry:
    """A tensor to write; `dtype` is F32, F16 or U32."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def write(
    path: Path, entries: Sequence[Entry], arrays: Iterable[npt.NDArray[Any]], written: Callable[[int], None]
) -> None:
    """A new file with `entries`, whose data `arrays` yields in the same order; one array is held at a time.

    Args:
        path: the file; its data is on the disk on return.
        entries: name, type and shape of each tensor.
        arrays: of the very shapes and types that `entries` say.
        written: told the number of data bytes after each piece.

    Raises:
        OSError: the file could not be written.
    """
    with path.open("xb") as stream:
        stream.write(_header(entries))
        for entry, array in zip(entries, arrays, strict=True):
            if array.shape != entry.shape or array.dtype != np.dtype(_DTYPES[entry.dtype]):
                raise ValueError(f"{entry.name}: {array.dtype} {array.shape} is not {entry}")
            data = np.ascontiguousarray(array).data.cast("B")
            for start in range(0, len(data), _CHUNK_BYTES):
                piece = data[start : start + _CHUNK_BYTES]
                stream.write(piece)
                written(len(piece))
        stream.flush()
        os.fsync(stream.fileno())


def _header(entries: Sequence[Entry]) -> bytes:
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


def check_whole(path: Path) -> None:
    """Nothing, if the safetensors file at `path` is as long as its header says.

    Raises:
        ImportFailed: it is not, or has no such header; the message names the file.
        OSError: it could not be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ImportFailed(f"{path.name}: not a safetensors file, or it is cut short inside its header")
        body = stream.read(length)
    expected = 8 + length + _data_bytes(path, body)
    if size != expected:
        raise ImportFailed(f"{path.name}: its header says {expected} bytes, and it has {size}")


def _data_bytes(path: Path, body: bytes) -> int:
    damaged = ImportFailed(f"{path.name}: its safetensors header is damaged")
    try:
        header = json.loads(body)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    end = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        match tensor:
            case {"data_offsets": [int(first), int(last)]} if 0 <= first <= last:
                end = max(end, last)
            case _:
                raise damaged
    return end
