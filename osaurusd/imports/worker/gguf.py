"""Reading the header of a GGUF file: its metadata and the positions of its tensors.

The format is described in ggml's `docs/gguf.md`. Files are untrusted: every length is checked against the remaining
bytes, and every count against the minimum size of its items. The reader of the `gguf` package is not used: it maps the
file by its path, fails with IndexError and the like for damaged files or reads beyond a tensor's end, and took 60 times
as long for SmolLM2's vocabulary of 49,152 tokens (11 s and 200 MB, compared with 0.2 s and 44 MB).
"""

import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker.metadata import Metadata, Value
from osaurusd.wire.errors import as_json
from osaurusd.wire.open_files import part_names

VERSIONS = (2, 3)
# The largest vocabularies take about 20 MB with their merges. Tensor data is read separately.
MAX_HEADER_BYTES = 128 * 1024 * 1024
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
# Far above any real vocabulary. Numbers of one byte take 50 times as much memory while they are checked.
MAX_ARRAY_NUMBERS = 1 << 22
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1024 * 1024

_MAGIC = b"GGUF"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
# A token or merge with its length.
_TYPICAL_STRING_BYTES = 24
_BLOCK_BYTES = 256 * 1024

# MXFP4 in Ollama's first files of GPT-OSS (its `fs/ggml/type.go`). ggml had removed its own type 4 before GGUF.
_PAIRED_MXFP4 = 4


@dataclass(frozen=True)
class Interleaving:
    """A tensor that takes turns with others in the data of the file, item by item.

    Attributes:
        index: its place among the tensors.
        count: the number of tensors.
        item_bytes: the size of an item.
    """

    index: int
    count: int
    item_bytes: int

    def select(self, data: bytes) -> bytes:
        """Return the items of this tensor. `data` consists of whole turns."""
        return np.frombuffer(data, np.uint8).reshape(-1, self.count, self.item_bytes)[:, self.index].tobytes()


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file.

    Attributes:
        path: the file with its data.
        type: ggml's name of the type.
        shape: outermost axis first; the file stores it last.
        offset: in bytes from the start of the file.
        nbytes: the size of its own data.
        interleaving: None if the data is contiguous. `offset` is that of the first turn.
        paired: the bytes of its MXFP4 blocks hold neighbors. In ggml's they hold weights that are 16 apart.
    """

    path: Path
    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    interleaving: Interleaving | None = None
    paired: bool = False


@dataclass(frozen=True)
class GgufHeader:
    """The header of a model. All tensors are inside the files.

    Attributes:
        paths: the file, or all parts of a split model in order.
        metadata: of the first part.
    """

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def read(self, tensor: TensorInfo, start: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes of a tensor from byte `start`; all by default. Both are multiples of a row's bytes.

        Raises:
            ImportFailed: the file has become shorter.
            OSError: the file could not be read.
        """
        size = tensor.nbytes - start if size is None else size
        interleaving = tensor.interleaving
        turns = interleaving.count if interleaving else 1
        with tensor.path.open("rb", buffering=0) as stream:
            # Not by the position in the file, which threads that read the same open file share.
            data = os.pread(stream.fileno(), size * turns, tensor.offset + start * turns)
        if len(data) != size * turns:
            raise ImportFailed(f"{tensor.path.name}: the file shrank while it was read")
        if interleaving:
            data = interleaving.select(data)
        return _unpair(data) if tensor.paired else data


def _unpair(data: bytes) -> bytes:
    """Return MXFP4 blocks in ggml's order: byte i holds weights i and i + 16 instead of 2i and 2i + 1."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType.MXFP4][1]).copy()
    # Eight bytes at a time: the first and the second half of each block.
    first, second = np.ascontiguousarray(blocks[:, 1:]).view(np.uint64).T
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    even = (first & low) | (second & low) << np.uint64(4)
    odd = (first >> np.uint64(4)) & low | second & ~low
    blocks[:, 1:] = np.stack([even.view(np.uint8), odd.view(np.uint8)], axis=-1).reshape(len(blocks), -1)
    return blocks.tobytes()


def is_gguf(path: Path) -> bool:
    """Whether a file starts like a GGUF file. Other programs store them without the suffix."""
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3, little-endian, and of the other parts of a split model.

    Raises:
        ImportFailed: the file is not a GGUF file, is damaged or truncated, or is not the first of several parts.
        OSError: a file could not be read.
    """
    header = _read_file(path)
    count = header.metadata.find_integer("split.count") or 1
    return header if count == 1 else _read_parts(header, path, count)


def _read_file(path: Path) -> GgufHeader:
    with path.open("rb") as stream:
        return _HeaderReader(path, stream).read()


def _read_parts(first: GgufHeader, path: Path, count: int) -> GgufHeader:
    names = part_names(path.name)
    if len(names) != count:
        raise first.metadata.failure(
            f"it is one of {count} parts; import the first one, whose name ends in -00001-of-{count:05d}.gguf"
        )
    tensors = dict(first.tensors)
    paths = [path, *(path.parent / name for name in names[1:])]
    for number, part_path in enumerate(paths[1:], start=1):
        part = _read_file(part_path)
        if part.metadata.find_integer("split.no") != number or part.metadata.find_integer("split.count") != count:
            raise part.metadata.failure(f"it is not part {number + 1} of {count}")
        if repeated := sorted(tensors.keys() & part.tensors.keys()):
            raise part.metadata.failure(f"the tensor {as_json(repeated[0])} is also in another part")
        tensors |= part.tensors
    declared = first.metadata.find_integer("split.tensors.count")
    if declared not in (None, len(tensors)):
        raise first.metadata.failure(
            f"the parts have {len(tensors)} tensors instead of {declared}; one of them belongs to another model"
        )
    return GgufHeader(tuple(paths), first.metadata, tensors)


class _HeaderReader:
    """Reads values from the beginning of a file, up to the maximum size of a header."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._size = path.stat().st_size
        self._limit = min(self._size, MAX_HEADER_BYTES)
        self._position = 0

    def read(self) -> GgufHeader:
        if self._size < 4 or self._take(4) != _MAGIC:
            raise self._failure("not a GGUF file: it does not start with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise self._failure(_version_reason(version))
        tensor_count = self._count(self._number("Q"), _MIN_TENSOR_BYTES, "tensors")
        key_count = self._count(self._number("Q"), _MIN_KEY_BYTES, "metadata keys")
        metadata = Metadata(self._path.name, self._keys(key_count))
        alignment = self._alignment(metadata)
        tensors = [self._tensor(alignment) for _ in range(tensor_count)]
        data_start = -(-self._position // alignment) * alignment
        return GgufHeader((self._path,), metadata, self._resolve_offsets(tensors, data_start))

    def _failure(self, reason: str) -> ImportFailed:
        return ImportFailed(f"{self._path.name}: {reason}")

    def _take(self, count: int) -> bytes:
        if count > self._limit - self._position:
            if self._limit < self._size:
                raise self._failure(f"the header exceeds {MAX_HEADER_BYTES} bytes")
            raise self._failure(f"the file is truncated inside its header, at byte {self._size}")
        data = self._stream.read(count)
        if len(data) != count:
            raise self._failure("the file shrank while it was read")
        self._position += count
        return data

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _count(self, count: int, min_bytes: int, what: str) -> int:
        if count > (self._limit - self._position) // min_bytes:
            raise self._failure(f"it declares {count} {what}, more than its {self._size} bytes can hold")
        return count

    def _string_bytes(self) -> bytes:
        return self._take(int.from_bytes(self._take(8), "little"))

    def _string(self) -> str:
        return self._decode([self._string_bytes()])[0]

    def _strings(self, count: int) -> list[str]:
        """Read many strings, such as a vocabulary. Taking them from blocks is faster than reading each one."""
        read_length = struct.Struct("<Q").unpack_from
        strings: list[bytes] = []
        while len(strings) < count:
            # Whatever its size, or the reason why there is none.
            strings.append(self._string_bytes())
            wanted = (count - len(strings)) * _TYPICAL_STRING_BYTES
            block = self._stream.read(min(wanted, _BLOCK_BYTES, self._limit - self._position))
            position = 0
            while len(strings) < count and (start := position + 8) <= len(block):
                end = start + read_length(block, position)[0]
                if end > len(block):
                    break
                strings.append(block[start:end])
                position = end
            self._position += position
            self._stream.seek(self._position)
        return self._decode(strings)

    def _decode(self, strings: list[bytes]) -> list[str]:
        try:
            return [data.decode() for data in strings]
        except UnicodeDecodeError:
            raise self._failure(f"a string before byte {self._position} is not valid UTF-8") from None

    def _keys(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            if key in values:
                raise self._failure(f"the metadata key {as_json(key)} is duplicated")
            values[key] = self._value(self._number("I"), key, depth=0)
        return values

    def _value(self, kind: int, key: str, depth: int) -> Value:
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        if kind == _STRING:
            return self._string()
        if kind not in _NUMBERS:
            raise self._failure(f"the metadata key {as_json(key)} has the unknown value type {kind}")
        number = self._number(_NUMBERS[kind])
        return self._booleans([number], key)[0] if kind == _BOOL else number

    def _array(self, key: str, depth: int) -> list[Value]:
        if depth > MAX_ARRAY_DEPTH:
            raise self._failure(f"the metadata key {as_json(key)} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            self._count(count, struct.calcsize("<" + code), f"items of {as_json(key)}")
            if count > MAX_ARRAY_NUMBERS:
                raise self._failure(
                    f"the metadata key {as_json(key)} has {count} numbers, more than {MAX_ARRAY_NUMBERS}"
                )
            numbers = list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code))))
            return self._booleans(numbers, key) if kind == _BOOL else numbers
        if kind == _STRING:
            self._count(count, 8, f"items of {as_json(key)}")
            return [*self._strings(count)]
        if kind != _ARRAY:
            raise self._failure(f"the metadata key {as_json(key)} has items of the unknown value type {kind}")
        self._count(count, 12, f"items of {as_json(key)}")
        return [self._value(kind, key, depth) for _ in range(count)]

    def _booleans(self, numbers: list[Any], key: str) -> list[Value]:
        if any(number > 1 for number in numbers):
            raise self._failure(f"the metadata key {as_json(key)} has a boolean that is neither 0 nor 1")
        return [number == 1 for number in numbers]

    def _alignment(self, metadata: Metadata) -> int:
        alignment = metadata.find_integer("general.alignment")
        if alignment is None:
            return DEFAULT_ALIGNMENT
        if not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
            raise self._failure(f"general.alignment is {alignment}, not a multiple of 8 up to {MAX_ALIGNMENT}")
        return alignment

    def _tensor(self, alignment: int) -> TensorInfo:
        """Read a tensor's entry. Its offset is relative to the start of the tensor data."""
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._failure(f"tensor {as_json(name)} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        paired = kind == _PAIRED_MXFP4
        try:
            ggml_type = GGMLQuantizationType.MXFP4 if paired else GGMLQuantizationType(kind)
        except ValueError:
            raise self._failure(f"tensor {as_json(name)} has the unknown type {kind}") from None
        type_name, (block_weights, block_bytes) = ggml_type.name, GGML_QUANT_SIZES[ggml_type]
        if 0 in shape or shape[-1] % block_weights:
            raise self._failure(f"tensor {as_json(name)} of type {type_name} has the invalid shape {list(shape)}")
        if offset % alignment:
            raise self._failure(
                f"tensor {as_json(name)} has the offset {offset}, which is not aligned to {alignment} bytes"
            )
        nbytes = math.prod(shape) // block_weights * block_bytes
        return TensorInfo(self._path, name, type_name, shape, offset, nbytes, paired=paired)

    def _resolve_offsets(self, tensors: list[TensorInfo], data_start: int) -> dict[str, TensorInfo]:
        resolved: dict[str, TensorInfo] = {}
        for tensor in tensors:
            start = data_start + tensor.offset
            if start + tensor.nbytes > self._size:
                raise self._failure(
                    f"the file is truncated: tensor {as_json(tensor.name)} ends at byte {start + tensor.nbytes}, "
                    f"but the file has {self._size} bytes"
                )
            if tensor.name in resolved:
                raise self._failure(f"the tensor {as_json(tensor.name)} is duplicated")
            resolved[tensor.name] = replace(tensor, offset=start)
        return resolved


def _version_reason(version: int) -> str:
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        return "big-endian GGUF files are not supported"
    return f"GGUF version {version} is not supported; supported versions: {', '.join(map(str, VERSIONS))}"
