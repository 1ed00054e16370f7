"""Safetensors headers: whether a model's weights are complete, and how large they are.

Format (https://huggingface.co/docs/safetensors): an 8-byte little-endian header length, a JSON header, the data.
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osaurusd.models import metadata

INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000

# Bits per value, by the format's type names.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")

_UNREADABLE = (OSError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError, struct.error)


class IncompleteFile(ValueError):
    """A file is shorter or longer than its header implies."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as described by its header; `nbytes` is its size in the file and in memory."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Weights:
    """The tensors of a model. `missing` describes what is missing or damaged, or is None for complete weights."""

    tensors: Mapping[str, Tensor]
    missing: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read(folder: Path) -> Weights:
    """Read the weight headers of a model folder, whether or not the weights are complete."""
    try:
        shards = _shards(folder)
    except _UNREADABLE as error:
        return Weights({}, f"{INDEX} cannot be read: {error}")
    if not shards:
        return Weights({}, "no model*.safetensors")
    tensors: dict[str, Tensor] = {}
    for name in shards:
        try:
            tensors.update(_read_tensors(folder / name))
        except FileNotFoundError:
            return Weights(tensors, f"{name}: missing")
        except IncompleteFile as error:
            return Weights(tensors, f"{name}: {error}")
        except _UNREADABLE as error:
            return Weights(tensors, f"{name}: unreadable header: {error}")
    return Weights(tensors)


def check_complete(path: Path) -> None:
    """Check that a file is as long as its header implies.

    Raises:
        ValueError: the file is incomplete, or its header is damaged.
        OSError: the file could not be read.
    """
    try:
        for _ in _read_tensors(path):
            pass
    except (OSError, IncompleteFile):
        raise
    except _UNREADABLE as error:
        raise ValueError(f"unreadable safetensors header: {error}") from error


def _shards(folder: Path) -> list[str]:
    """Return the names of the weight files: those in the index, or all that mlx_lm would load."""
    index = folder / INDEX
    if not index.exists():
        present = {path.name for path in folder.glob("model*.safetensors")}
        return sorted(present.union(*(_sibling_shards(name) for name in present)))
    names = set(metadata.read_json_object(index)["weight_map"].values())
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"it names a file outside the model: {outside[0]}")
    return sorted(names)


def _sibling_shards(name: str) -> set[str]:
    """Return the names of all shards if `name` is the name of a shard."""
    parts = _SHARD.fullmatch(name)
    if parts is None:
        return set()
    count = int(parts["count"])
    width = len(parts["number"])
    return {f"{parts['stem']}-{number:0{width}}-of-{parts['count']}.safetensors" for number in range(1, count + 1)}


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"the declared header of {length} bytes is too large")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise IncompleteFile(f"{size} bytes, but its header implies {expected}")
    for name, entry in header.items():
        yield name, _parse_tensor(entry)


def _parse_tensor(entry: Mapping[str, Any]) -> Tensor:
    """Parse a header entry.

    Raises:
        ValueError: the entry's offsets do not match its shape and type, so loading it by shape would read other data.
    """
    begin, end = entry["data_offsets"]
    tensor = Tensor(entry["dtype"], tuple(int(size) for size in entry.get("shape", ())), end - begin)
    bits = _BITS.get(tensor.dtype)
    if begin < 0 or end < begin or min(tensor.shape, default=0) < 0:
        raise ValueError("a tensor lies outside of the file")
    if bits is not None and "shape" in entry and math.prod(tensor.shape) * bits != tensor.nbytes * 8:
        raise ValueError(f"a tensor of shape {list(tensor.shape)[:8]} does not have {tensor.nbytes} bytes")
    return tensor
