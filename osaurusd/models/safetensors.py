"""Safetensors headers: whether a model's weights are complete, and how large they are.

Format (https://huggingface.co/docs/safetensors): an 8-byte little-endian header length, a JSON header, the data.
"""

import json
import math
import re
import stat
import struct
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from osaurusd.models import metadata

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_WEIGHTS = "model*.safetensors"
_MAX_HEADER_BYTES = 100_000_000

# Bits per value, by the format's type names.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

# With a suffix that programs append to copies, such as ` (1)`.
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\b.*\.safetensors")

_UNREADABLE = (OSError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError, struct.error)


class IncompleteFile(ValueError):
    """A file is shorter or longer than its header implies."""


class Tensor(msgspec.Struct, frozen=True):
    """A tensor as described by its header; `nbytes` is its size in the file and in memory."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Weights(msgspec.Struct, frozen=True):
    """The tensors of a model. `missing` describes what is missing or damaged, or is None for complete weights.

    `files` has the names of the tensors in each file.
    """

    tensors: Mapping[str, Tensor]
    missing: str | None = None
    files: Mapping[str, Collection[str]] = msgspec.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read(folder: Path) -> Weights:
    """Read the headers of all weight files that mlx_lm loads, whether or not the weights are complete."""
    present = sorted(path.name for path in folder.glob(_WEIGHTS))
    if not present:
        return Weights({}, f"no {_WEIGHTS}")
    tensors: dict[str, Tensor] = {}
    files: dict[str, Collection[str]] = {}
    for name in present:
        try:
            found = dict(_read_tensors(folder / name))
        except FileNotFoundError:
            return Weights(tensors, f"{name}: missing")
        except IncompleteFile as error:
            return Weights(tensors, f"{name}: {error}")
        except _UNREADABLE as error:
            return Weights(tensors, f"{name}: unreadable header: {error}")
        if contradiction := _find_contradiction(tensors, found):
            return Weights(tensors, f"{name}: {contradiction}")
        tensors |= found
        files[name] = found.keys()
    missing = find_missing_file(read_weight_map(folder), present, tensors)
    return Weights(tensors, f"{missing}: missing" if missing else None, files)


def read_weight_map(folder: Path) -> dict[str, str]:
    """Return the name of the file with each tensor according to the index; empty without a valid index.

    mlx_lm does not use the index, so a damaged one does no harm.
    """
    try:
        return parse_weight_map(metadata.read_json_object(folder / INDEX))
    except (OSError, ValueError):
        return {}


def parse_weight_map(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the valid entries of an index's `weight_map`."""
    weight_map = index.get("weight_map")
    entries = weight_map.items() if isinstance(weight_map, dict) else ()
    return {tensor: file for tensor, file in entries if isinstance(file, str) and file}


def find_missing_file(
    weight_map: Mapping[str, str], present: Collection[str], tensors: Container[str] = ()
) -> str | None:
    """Return the name of a missing weight file; None if the present files are complete.

    The index of a published model may be left over from other weights, so it only counts if it fits the files.

    Args:
        weight_map: the file with each tensor according to the index.
        present: the names of the weight files.
        tensors: the names of the tensors in them, as far as they are known.
    """
    files = set(present)
    siblings = _missing_shards(files)
    absent = siblings.union(weight_map.values()) - files
    if weight_map and all(tensor in tensors for tensor in weight_map):
        return None
    is_whole = WHOLE in files or any(_SHARD.fullmatch(name) for name in files)
    if is_whole and not siblings and files.isdisjoint(weight_map.values()):
        return None
    return min(absent, default=None)


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


def _find_contradiction(known: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return which tensor differs from that of another file. mlx_lm would use either, by the order of the directory."""
    for name in known.keys() & found.keys():
        if known[name] != found[name]:
            return f"another file contains a different `{name}`; remove the file that does not belong to the model"
    return None


def _missing_shards(files: Iterable[str]) -> set[str]:
    """Return the names of shards that are absent although another shard of their set is present."""
    present: dict[tuple[str, str], set[int]] = {}
    for parts in filter(None, map(_SHARD.fullmatch, files)):
        present.setdefault((parts["stem"], parts["count"]), set()).add(int(parts["number"]))
    return {
        f"{stem}-{number:05}-of-{count}.safetensors"
        for (stem, count), numbers in present.items()
        for number in range(1, int(count) + 1)
        if number not in numbers
    }


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    size = status.st_size
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
