"""Reading the header of a GGUF file: its metadata and the positions of its tensors.

The format is described in ggml's `docs/gguf.md`. Files are untrusted: every length is checked against the remaining
bytes, and every count against the minimum size of its items.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np

from osaurusd.errors import ImportFailed

VERSIONS = (2, 3)
# The largest vocabularies take about 20 MB with their merges. Tensor data is read separately.
MAX_HEADER_BYTES = 128 * 1024 * 1024
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1024 * 1024

_MAGIC = b"GGUF"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

TensorType: TypeAlias = tuple[str, int, int]

# ggml_type: name, weights per block, bytes per block (ggml/src/ggml-common.h). Missing numbers were withdrawn.
_TYPES: dict[int, TensorType] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


Value: TypeAlias = "int | float | bool | str | list[Value]"

T = TypeVar("T")


def shortest_float32(number: float) -> float:
    """Return the shortest decimal with the same float32 value: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(number)))


class Metadata:
    """Typed access to a GGUF file's metadata.

    The `find_` methods return None for a missing key; the others reject the file. All raise `ImportFailed` with the
    file and the key if the value has another type.
    """

    def __init__(self, file_name: str, values: Mapping[str, Value]) -> None:
        self.file_name = file_name
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def failure(self, reason: str) -> ImportFailed:
        """Build an error that names the file."""
        return ImportFailed(f"{self.file_name}: {reason}")

    def find_text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "text")

    def text(self, key: str) -> str:
        return self._present(key, self.find_text(key))

    def find_integer(self, key: str) -> int | None:
        """Return an integer. Some writers repeat it for each layer: a list of equal integers counts as one."""
        value = self._values.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, "one integer")

    def integer(self, key: str) -> int:
        return self._present(key, self.find_integer(key))

    def find_number(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise self._wrong(key, "a finite number")

    def number(self, key: str) -> float:
        return self._present(key, self.find_number(key))

    def find_flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, "a boolean")

    def find_texts(self, key: str) -> list[str] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, list):
            texts = [item for item in value if isinstance(item, str)]
            if len(texts) == len(value):
                return texts
        raise self._wrong(key, "a list of texts")

    def texts(self, key: str) -> list[str]:
        return self._present(key, self.find_texts(key))

    def find_numbers(self, key: str) -> list[float] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, list):
            numbers = [float(item) for item in value if isinstance(item, int | float) and math.isfinite(item)]
            if len(numbers) == len(value):
                return numbers
        raise self._wrong(key, "a list of finite numbers")

    def _present(self, key: str, value: T | None) -> T:
        if value is None:
            raise self.failure(f"the metadata key {key!r} is missing")
        return value

    def _wrong(self, key: str, expected: str) -> ImportFailed:
        return self.failure(f"the metadata key {key!r} is not {expected}")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file.

    Attributes:
        type: ggml's name of the type.
        shape: outermost axis first; the file stores it last.
        offset: in bytes from the start of the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A header. All tensors are inside the file."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def is_gguf(path: Path) -> bool:
    """Whether a file starts like a GGUF file, whatever its name is.

    Raises:
        OSError: the file could not be read.
    """
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3, little-endian.

    Raises:
        ImportFailed: the file is not a GGUF file, or is damaged or truncated.
        OSError: the file could not be read.
    """
    with path.open("rb") as stream:
        return _HeaderReader(path, stream).read()


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
        return GgufHeader(self._path, metadata, self._resolve_offsets(tensors, data_start))

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

    def _string(self) -> str:
        data = self._take(int.from_bytes(self._take(8), "little"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._failure(f"a string that ends at byte {self._position} is not valid UTF-8") from None

    def _keys(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            if key in values:
                raise self._failure(f"the metadata key {key!r} is duplicated")
            values[key] = self._value(self._number("I"), key, depth=0)
        return values

    def _value(self, kind: int, key: str, depth: int) -> Value:
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        if kind == _STRING:
            return self._string()
        if kind not in _NUMBERS:
            raise self._failure(f"the metadata key {key!r} has the unknown value type {kind}")
        number = self._number(_NUMBERS[kind])
        return self._booleans([number], key)[0] if kind == _BOOL else number

    def _array(self, key: str, depth: int) -> list[Value]:
        if depth > MAX_ARRAY_DEPTH:
            raise self._failure(f"the metadata key {key!r} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            self._count(count, struct.calcsize("<" + code), f"items of {key!r}")
            numbers = list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code))))
            return self._booleans(numbers, key) if kind == _BOOL else numbers
        if kind == _STRING:
            self._count(count, 8, f"items of {key!r}")
            return [self._string() for _ in range(count)]
        if kind != _ARRAY:
            raise self._failure(f"the metadata key {key!r} has items of the unknown value type {kind}")
        self._count(count, 12, f"items of {key!r}")
        return [self._value(kind, key, depth) for _ in range(count)]

    def _booleans(self, numbers: list[Any], key: str) -> list[Value]:
        if any(number > 1 for number in numbers):
            raise self._failure(f"the metadata key {key!r} has a boolean that is neither 0 nor 1")
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
            raise self._failure(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in _TYPES:
            raise self._failure(f"tensor {name!r} has the unknown type {kind}")
        type_name, block_weights, block_bytes = _TYPES[kind]
        if 0 in shape or shape[-1] % block_weights:
            raise self._failure(f"tensor {name!r} of type {type_name} has the invalid shape {list(shape)}")
        if offset % alignment:
            raise self._failure(f"tensor {name!r} has the offset {offset}, which is not aligned to {alignment} bytes")
        return TensorInfo(name, type_name, shape, offset, math.prod(shape) // block_weights * block_bytes)

    def _resolve_offsets(self, tensors: list[TensorInfo], data_start: int) -> dict[str, TensorInfo]:
        resolved: dict[str, TensorInfo] = {}
        for tensor in tensors:
            start = data_start + tensor.offset
            if start + tensor.nbytes > self._size:
                raise self._failure(
                    f"the file is truncated: tensor {tensor.name!r} ends at byte {start + tensor.nbytes}, "
                    f"but the file has {self._size} bytes"
                )
            if tensor.name in resolved:
                raise self._failure(f"the tensor {tensor.name!r} is duplicated")
            resolved[tensor.name] = TensorInfo(tensor.name, tensor.type, tensor.shape, start, tensor.nbytes)
        return resolved


def _version_reason(version: int) -> str:
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        return "big-endian GGUF files are not supported"
    return f"GGUF version {version} is not supported; supported versions: {', '.join(map(str, VERSIONS))}"
