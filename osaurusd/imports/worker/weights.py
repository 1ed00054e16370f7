"""Converting the tensors of a GGUF file to MLX's safetensors, a few pieces of a tensor in memory at a time.

`mx.load` reads some GGUF files too, but it opens them for writing (which fails for another user's file), holds the
whole model in memory, and ignores `general.alignment`.
"""

import contextlib
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from osaurusd.imports.worker import quantization
from osaurusd.imports.worker.gguf import GgufHeader, TensorInfo
from osaurusd.imports.worker.plan import Placement, Plan
from osaurusd.imports.worker.quantization import Scheme
from osaurusd.imports.worker.tensor_file import Entry, write_model
from osaurusd.wire.errors import as_json
from osaurusd.wire.quantization import QuantizationReport, StoredMatrices

Array = npt.NDArray[Any]

# The weights that a thread converts at once; their float32 values fit into the cache of a core.
PIECE_WEIGHTS = 1 << 20
# Blocks that stay as they are become no floats, and take so little time that with smaller pieces, the threads mostly
# wait for each other between NumPy's functions. A few threads convert them faster than another one hashes the result.
_HELD_PIECE_WEIGHTS = 1 << 21
_MAX_HELD_PIECES = 4
_MAX_THREADS = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}


@dataclass
class ErrorMeter:
    """Collects how matrices are stored, and the relative RMS error of each that has other values than in the file."""

    errors: dict[str, float] = field(default_factory=dict)
    exact: int = 0
    _groups: dict[tuple[str, str, bool], list[float | None]] = field(default_factory=dict)

    def add(self, placement: Placement, error: float, signal: float) -> None:
        relative = self.errors[placement.sources[0].name] = math.sqrt(error / signal) if signal else 0.0
        self._group(placement, str(placement.scheme)).append(relative)

    def add_exact(self, placement: Placement) -> None:
        self.exact += 1
        self._group(placement, str(placement.scheme)).append(0.0)

    def add_floats(self, placement: Placement, float_type: str) -> None:
        if any(len(tensor.shape) > 1 for tensor in placement.sources):
            self._group(placement, float_type).append(None)

    def _group(self, placement: Placement, stored: str) -> list[float | None]:
        types = "/".join(sorted({tensor.type for tensor in placement.sources}))
        return self._groups.setdefault((types, stored, placement.held), [])

    def report(self) -> QuantizationReport:
        worst = max(self.errors, key=lambda name: self.errors[name], default=None)
        return QuantizationReport(
            exact=self.exact,
            converted=len(self.errors),
            mean_error=sum(self.errors.values()) / max(1, len(self.errors)),
            worst_error=self.errors[worst] if worst else 0.0,
            worst_tensor=worst,
            matrices=[
                StoredMatrices(type=types, count=len(errors), stored=stored, held=held, error=_mean(errors))
                for (types, stored, held), errors in self._groups.items()
            ],
        )


def _mean(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return sum(known) / len(known) if known else None


def total_bytes(plan: Plan) -> int:
    """Return the bytes of all tensors as `write_weights` stores them."""
    return sum(entry.nbytes for placement in plan.placements for entry in _entries(placement, plan.float_type))


def write_weights(
    header: GgufHeader, plan: Plan, dest: Path, progress: Callable[[int, int], None]
) -> tuple[dict[str, str], ErrorMeter]:
    """Write `model.safetensors` to `dest`, or shards and their index if it would exceed 5 GiB.

    Args:
        header: of the file that `plan` was made for.
        plan: which tensors to write and how.
        dest: an existing folder.
        progress: called with the bytes written and the total bytes.

    Returns:
        The SHA-256 of each file by name, and the errors of quantization.

    Raises:
        ImportFailed: the file shrank, or a value is not finite.
        OSError: a file could not be read or written.
    """
    entries = [entry for placement in plan.placements for entry in _entries(placement, plan.float_type)]
    with Converter(header, plan.float_type) as converter:
        contents = (part for placement in plan.placements for part in converter.convert(placement))
        digests = write_model(dest, entries, map(_as_bytes, contents), progress)
    return digests, converter.errors


def _as_bytes(arrays: Iterable[Array]) -> Iterator[memoryview]:
    return (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays)


def _entries(placement: Placement, float_type: str) -> list[Entry]:
    """Return the entries of the arrays that `Converter.convert` yields, in the same order."""
    name, shape, scheme = placement.parameter.name, placement.parameter.shape, placement.scheme
    if scheme is None:
        return [_entry(name, float_type, shape)]
    module, columns = name.removesuffix(".weight"), shape[-1]
    groups = (*shape[:-1], columns // scheme.group_size)
    weight = _entry(name, "U32", (*shape[:-1], columns * scheme.bits // 32))
    if scheme.mode == "mxfp4":
        return [weight, _entry(f"{module}.scales", "U8", groups)]
    return [weight, _entry(f"{module}.scales", float_type, groups), _entry(f"{module}.biases", float_type, groups)]


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return Entry(name, dtype, shape, math.prod(shape) * _ITEM_BYTES[dtype])


def _is_reordered_vector(placement: Placement, tensor: TensorInfo) -> bool:
    """Whether the elements of a bias are reordered like the rows of its matrix."""
    return len(tensor.shape) == 1 and placement.transform is not None and placement.transform.rows is not None


class Converter:
    """Converts tensors on several threads. A context manager, which ends the threads."""

    def __init__(self, header: GgufHeader, float_type: str) -> None:
        self._header = header
        self._float_type = float_type
        self._threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads)
        self.errors = ErrorMeter()

    def __enter__(self) -> "Converter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def convert(self, placement: Placement) -> Iterator[Iterable[Array]]:
        """Yield the arrays of each entry of a placement. Each must be consumed before the next."""
        if not placement.sources:
            size = math.prod(placement.parameter.shape)
            yield [np.zeros(size, quantization.to_float(np.zeros(1, np.float32), self._float_type).dtype)]
        elif placement.scheme is None:
            yield self._in_order(self._jobs(placement), self._threads)
            self.errors.add_floats(placement, self._float_type)
        else:
            yield from self._quantized(placement, placement.scheme)

    def _quantized(self, placement: Placement, scheme: Scheme) -> Iterator[Iterable[Array]]:
        """Yield the levels as a stream. Scales and biases, a third of their size or less, are held until then."""
        scales: list[Array] = []
        biases: list[Array] = []
        error = signal = 0.0

        def levels() -> Iterator[Array]:
            nonlocal error, signal
            pieces = min(self._threads, _MAX_HELD_PIECES) if placement.held else self._threads
            for piece in self._in_order(self._jobs(placement), pieces):
                scales.append(piece.scales)
                if piece.biases is not None:
                    biases.append(piece.biases)
                error += piece.error
                signal += piece.signal
                yield piece.weight

        yield levels()
        yield scales
        if biases:
            yield biases
        types = {tensor.type for tensor in placement.sources}
        if placement.held and all(quantization.is_exact(each, scheme, self._float_type) for each in types):
            self.errors.add_exact(placement)
        else:
            self.errors.add(placement, error, signal)

    def _jobs(self, placement: Placement) -> Iterator[Callable[[], Any]]:
        """Yield functions that convert consecutive rows of the parameter."""
        if placement.transform and placement.transform.values:
            yield from self._computed(placement)
            return
        transform = placement.transform
        unit = transform.unit if transform else 1
        for tensor in placement.sources:
            columns = 1 if _is_reordered_vector(placement, tensor) else tensor.shape[-1]
            rows = math.prod(tensor.shape) // columns
            weights = _HELD_PIECE_WEIGHTS if placement.held else PIECE_WEIGHTS
            step = max(1, weights // columns // unit) * unit
            for start in range(0, rows, step):
                yield functools.partial(self._piece, placement, tensor, range(start, min(start + step, rows)), rows)

    def _computed(self, placement: Placement) -> Iterator[Callable[[], Any]]:
        """Compute a parameter as a whole from all its tensors, then convert it in pieces."""
        compute = placement.transform.values if placement.transform else None
        assert compute is not None
        counts = [math.prod(tensor.shape[:-1]) for tensor in placement.sources]
        tensors = [
            self._dequantize(each, range(rows), rows) for each, rows in zip(placement.sources, counts, strict=True)
        ]
        values = compute([values.reshape(each.shape) for values, each in zip(tensors, placement.sources, strict=True)])
        rows = values.reshape(-1, placement.parameter.shape[-1])
        step = max(1, PIECE_WEIGHTS // rows.shape[1])
        for start in range(0, len(rows), step):
            yield functools.partial(self._store, placement, placement.sources[0], rows[start : start + step])

    def _piece(self, placement: Placement, tensor: TensorInfo, rows: range, total: int) -> Any:
        reorder = placement.transform.rows if placement.transform else None
        if placement.scheme is None or not placement.held:
            values = self._dequantize(tensor, rows, total)
            return self._store(placement, tensor, reorder(values) if reorder else values)
        data = self._read(tensor, rows, total)
        with self._naming(tensor):
            data = reorder(data) if reorder else data
            return quantization.convert_blocks(data, tensor.type, placement.scheme, self._float_type)

    def _store(self, placement: Placement, tensor: TensorInfo, values: Array) -> Any:
        with self._naming(tensor):
            if placement.scheme is None:
                return quantization.to_float(values, self._float_type)
            return quantization.requantize(values, placement.scheme, self._float_type)

    def _read(self, tensor: TensorInfo, rows: range, total: int) -> Array:
        """Read some of `total` rows as bytes."""
        size = tensor.nbytes // total
        data = self._header.read(tensor, rows.start * size, len(rows) * size)
        return np.frombuffer(data, np.uint8).reshape(len(rows), size)

    def _dequantize(self, tensor: TensorInfo, rows: range, total: int) -> Array:
        # Damaged scales may overflow; infinite values are rejected when they are stored.
        with np.errstate(all="ignore"):
            values = dequantize(self._read(tensor, rows, total), GGMLQuantizationType[tensor.type])
        return values.astype(np.float32, copy=False)

    @contextlib.contextmanager
    def _naming(self, tensor: TensorInfo) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise self._header.metadata.failure(f"tensor {as_json(tensor.name)} has {error}") from error

    def _in_order(self, jobs: Iterable[Callable[[], Any]], count: int) -> Iterator[Any]:
        """Run jobs on the threads, `count` at a time, and yield their results in order."""
        pending: deque[Future[Any]] = deque()
        for job in jobs:
            pending.append(self._pool.submit(job))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
