"""Converting tensors of a GGUF file to MLX's safetensors, with one tensor in memory at a time.

`mx.load` reads most GGUF files too, but it opens them for writing (which fails for another user's file), holds the
whole model in memory, and ignores `general.alignment`.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker import quantization
from osaurusd.imports.worker.gguf import GgufHeader, Metadata, TensorInfo
from osaurusd.imports.worker.llama import Placement, Plan
from osaurusd.platform.files import write_new_json

Array = npt.NDArray[Any]

# The shard size of mlx_lm's own conversion.
MAX_SHARD_BYTES = 5 << 30

_FLOATS: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2"}

_CHUNK_BYTES = 16 * 1024 * 1024
_ITEM_BYTES = {"F32": 4, "F16": 2, "U32": 4}
_DTYPES: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "U32": "<u4"}


@dataclass(frozen=True)
class Entry:
    """A tensor to write. `dtype` is F32, F16 or U32."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def read_floats(header: GgufHeader, name: str) -> npt.NDArray[np.float64] | None:
    """Read the tensor `name` of type F32 or F16 as float64. Return None if the file has no such tensor.

    Raises:
        ImportFailed: the tensor has another type, or the file shrank.
    """
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type not in _FLOATS:
        raise header.metadata.failure(f"tensor {name!r} has the type {tensor.type}; supported here: F32, F16")
    with header.path.open("rb") as stream:
        data = _read(stream, tensor, header.metadata)
    return np.frombuffer(data, dtype=_FLOATS[tensor.type]).reshape(tensor.shape).astype(np.float64)


def write_weights(header: GgufHeader, plan: Plan, dest: Path, progress: Callable[[int, int], None]) -> None:
    """Write `model.safetensors` to `dest`, or shards and their index if it would exceed 5 GiB.

    Args:
        header: the file that `plan` was made for.
        plan: which tensors to write and how.
        dest: an existing folder.
        progress: called with the bytes written and the total bytes.

    Raises:
        ImportFailed: the file shrank, or a value is not finite.
        OSError: a file could not be read or written.
    """
    shards = _shards(plan)
    names = _shard_names(len(shards))
    entries = [[entry for placement in shard for entry in _entries(placement, plan.float_type)] for shard in shards]
    total = sum(entry.nbytes for shard in entries for entry in shard)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    progress(0, total)
    with header.path.open("rb") as stream:
        for name, shard, shard_entries in zip(names, shards, entries, strict=True):
            arrays = (
                array for placement in shard for array in _arrays(placement, plan.float_type, stream, header.metadata)
            )
            write_safetensors(dest / name, shard_entries, arrays, written)
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, entries, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_new_json(dest / "model.safetensors.index.json", index)


def _shards(plan: Plan) -> list[list[Placement]]:
    shards: list[list[Placement]] = [[]]
    size = 0
    for placement in plan.placements:
        nbytes = sum(entry.nbytes for entry in _entries(placement, plan.float_type))
        if shards[-1] and size + nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(placement)
        size += nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _entries(placement: Placement, float_type: str) -> list[Entry]:
    """Return the entries of the arrays that `_arrays` yields, in the same order."""
    if placement.source is None or not placement.quantized:
        return [Entry(placement.target, float_type, placement.shape)]
    rows, columns = placement.shape
    module = placement.target.removesuffix(".weight")
    groups = (rows, columns // quantization.GROUP_SIZE)
    return [
        Entry(f"{module}.weight", "U32", (rows, columns * quantization.BITS[placement.source.type] // 32)),
        Entry(f"{module}.scales", "F16", groups),
        Entry(f"{module}.biases", "F16", groups),
    ]


def _arrays(placement: Placement, float_type: str, stream: BinaryIO, metadata: Metadata) -> Iterator[Array]:
    tensor = placement.source
    if tensor is None:
        yield np.zeros(placement.shape, dtype=_FLOATS[float_type])
        return
    data = _read(stream, tensor, metadata)
    if placement.quantized:
        quantized = quantization.convert_blocks(data, tensor.type, tensor.shape[0])
        _check_finite(quantized.scales, tensor, metadata)
        _check_finite(quantized.biases, tensor, metadata)
        arrays: tuple[Array, ...] = quantized
    else:
        values = np.frombuffer(data, dtype=_FLOATS[tensor.type]).reshape(tensor.shape)
        with np.errstate(over="ignore"):
            values = values.astype(_FLOATS[float_type])
        _check_finite(values, tensor, metadata)
        arrays = (values,)
    for array in arrays:
        yield _split_rotary_pairs(array, placement.heads) if placement.heads else array


def _split_rotary_pairs(rows: Array, heads: int) -> Array:
    """Reorder each head's rows from interleaved rotary pairs to halves, as mlx_lm's llama expects them.

    GGUF files interleave the pairs (`permute` in llama.cpp's convert_hf_to_gguf.py).
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _check_finite(values: Array, tensor: TensorInfo, metadata: Metadata) -> None:
    if not np.isfinite(values).all():
        raise metadata.failure(f"tensor {tensor.name!r} has a value that is not finite or exceeds float16")


def _read(stream: BinaryIO, tensor: TensorInfo, metadata: Metadata) -> bytes:
    stream.seek(tensor.offset)
    data = stream.read(tensor.nbytes)
    if len(data) != tensor.nbytes:
        raise metadata.failure("the file shrank while it was read")
    return data


def write_safetensors(
    path: Path, entries: Sequence[Entry], arrays: Iterable[npt.NDArray[Any]], written: Callable[[int], None]
) -> None:
    """Create a safetensors file and sync it to disk. Holds one array at a time.

    Args:
        path: the file to create.
        entries: name, type and shape of each tensor.
        arrays: the data, in the order, shapes and types of `entries`.
        written: called with the number of data bytes after each chunk.

    Raises:
        OSError: the file could not be written.
    """
    with path.open("xb") as stream:
        stream.write(_encode_header(entries))
        for entry, array in zip(entries, arrays, strict=True):
            if array.shape != entry.shape or array.dtype != np.dtype(_DTYPES[entry.dtype]):
                raise ValueError(f"{entry.name}: {array.dtype} {array.shape} is not {entry}")
            data = np.ascontiguousarray(array).data.cast("B")
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
