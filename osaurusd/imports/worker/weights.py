"""Reads tensors out of a GGUF file and writes them as MLX's safetensors, one tensor in memory at a time.

`mx.load` could read most GGUF files too, but it opens them for writing (which fails for a file of another user), holds
the whole model in memory and disregards `general.alignment`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from osaurusd.imports.worker import blocks, safetensors_file
from osaurusd.imports.worker.files import write_json
from osaurusd.imports.worker.gguf_file import GgufHeader, TensorInfo
from osaurusd.imports.worker.llama import Placement, Plan
from osaurusd.imports.worker.metadata import Metadata
from osaurusd.imports.worker.safetensors_file import Entry

Array = npt.NDArray[Any]

# Where mlx_lm's own conversion starts a new file.
MAX_SHARD_BYTES = 5 << 30

_FLOATS: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2"}


def read_floats(header: GgufHeader, name: str) -> npt.NDArray[np.float64] | None:
    """The tensor `name` of type F32 or F16 as float64 in its own shape, or None if there is no such tensor.

    Raises:
        ImportFailed: the tensor is of another type, or the file became shorter.
    """
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type not in _FLOATS:
        raise header.metadata.failure(f"tensor {name!r} is of type {tensor.type}; supported there are F32, F16")
    with header.path.open("rb") as stream:
        data = _read(stream, tensor, header.metadata)
    return np.frombuffer(data, dtype=_FLOATS[tensor.type]).reshape(tensor.shape).astype(np.float64)


def write_weights(header: GgufHeader, plan: Plan, dest: Path, progress: Callable[[int, int], None]) -> None:
    """`model.safetensors` in `dest`, or shards and their index where that would be larger than 5 GiB.

    Args:
        header: the file that `plan` was made for.
        plan: which tensors to write and how.
        dest: an existing folder.
        progress: told the bytes written and the bytes to write.

    Raises:
        ImportFailed: the file became shorter, or a number in it does not fit.
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
            safetensors_file.write(dest / name, shard_entries, arrays, written)
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, entries, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(dest / "model.safetensors.index.json", index)


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
    """What `_arrays` gives, in its order."""
    if placement.source is None or not placement.quantized:
        return [Entry(placement.target, float_type, placement.shape)]
    rows, columns = placement.shape
    module = placement.target.removesuffix(".weight")
    groups = (rows, columns // blocks.GROUP_SIZE)
    return [
        Entry(f"{module}.weight", "U32", (rows, columns * blocks.BITS[placement.source.type] // 32)),
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
        quantized = blocks.unpack(data, tensor.type, tensor.shape[0])
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
        yield _in_halves(array, placement.heads) if placement.heads else array


def _in_halves(rows: Array, heads: int) -> Array:
    """`rows` with each head's rotary pairs as (first of all pairs, second of all pairs), as mlx_lm's llama has them.

    GGUF files have the two of a pair next to each other (`permute` in llama.cpp's convert_hf_to_gguf.py).
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _check_finite(values: Array, tensor: TensorInfo, metadata: Metadata) -> None:
    if not np.isfinite(values).all():
        raise metadata.failure(f"tensor {tensor.name!r} has a number that is not finite or does not fit into float16")


def _read(stream: BinaryIO, tensor: TensorInfo, metadata: Metadata) -> bytes:
    stream.seek(tensor.offset)
    data = stream.read(tensor.nbytes)
    if len(data) != tensor.nbytes:
        raise metadata.failure("it became shorter while it was read")
    return data
