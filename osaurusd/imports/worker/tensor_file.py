"""Writing a model's weights as safetensors files, with one tensor in memory at a time."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A tensor to write. `dtype` is a type of the format, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def shard_names(count: int) -> list[str]:
    """Return the names of the files of a model that is stored in `count` files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write(
    path: Path, entries: Sequence[Entry], contents: Iterable[bytes | memoryview], written: Callable[[int], None]
) -> None:
    """Create a safetensors file and sync it to disk. Holds one tensor at a time.

    Args:
        path: the file to create.
        entries: name, type, shape and size of each tensor.
        contents: the data in the order of `entries`, as bytes.
        written: called with the number of data bytes after each chunk.

    Raises:
        OSError: the file could not be written.
    """
    with path.open("xb") as stream:
        stream.write(_encode_header(entries))
        for entry, data in zip(entries, contents, strict=True):
            if len(data) != entry.nbytes:
                raise ValueError(f"{entry.name}: {len(data)} bytes instead of {entry.nbytes}")
            for start in range(0, len(data), _CHUNK_BYTES):
                chunk = data[start : start + _CHUNK_BYTES]
                stream.write(chunk)
                written(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())


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
