"""Computes the parts of a batch on the cores of a CPU.

MLX computes most operations for a CPU on one core, and OpenBLAS gains little from a second core for matrices of an
encoder's size. Independent parts, each on a core of its own, wait for each other only at the end of the batch.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise

import mlx.core as mx
import numpy as np

from osaurusd.worker.runners.embedding.inputs import TokenSequence
from osaurusd.worker.runners.embedding.kernels import on_one_core

Encode = Callable[[Sequence[TokenSequence]], np.ndarray]

# Smaller parts spend more time in Python than in kernels.
_MIN_PART_TOKENS = 128

# Several parts for each core: one that has finished early takes over from the others.
_PARTS_PER_CORE = 2


class Cores:
    """The calling thread, and one for each further core.

    Args:
        count: number of cores; by default as many as OpenBLAS uses, or as the machine has.
    """

    def __init__(self, count: int | None = None) -> None:
        self._blas = _Blas()
        self._count = count or self._blas.threads or os.cpu_count() or 1
        # An executor for each thread, so that `close` reaches all of them.
        self._helpers = [ThreadPoolExecutor(1, thread_name_prefix="encoder") for _ in range(self._count - 1)]

    def close(self) -> None:
        """End the threads. A process that exits while MLX has streams of ended threads aborts."""
        for helper in self._helpers:
            helper.submit(mx.clear_streams)
            helper.shutdown()

    def encode(self, sequences: Sequence[TokenSequence], encode: Encode) -> np.ndarray:
        """Encode parts of the sequences, ordered by length, at the same time; return one row for each sequence."""
        parts = split(sequences, self._count * _PARTS_PER_CORE) if self._helpers else [sequences]
        if len(parts) == 1:
            return encode(sequences)
        rows: dict[int, np.ndarray] = {}
        # The longest first: the short ones fill the time until all cores are done.
        remaining = reversed(list(enumerate(parts)))

        def work() -> None:
            with mx.stream(mx.cpu), on_one_core():
                for number, part in remaining:
                    rows[number] = encode(part)

        with self._blas.single_threaded():
            helping = [helper.submit(work) for helper in self._helpers[: len(parts) - 1]]
            try:
                work()
            finally:
                wait(helping)
        for helper in helping:
            helper.result()
        return np.concatenate([rows[number] for number in range(len(parts))])


def split(sequences: Sequence[TokenSequence], count: int) -> list[Sequence[TokenSequence]]:
    """Split sequences into at most `count` parts of about the same number of tokens."""
    ends = np.cumsum([len(each) for each in sequences])
    size = max(ends[-1] / count, _MIN_PART_TOKENS)
    # The part that the middle of a sequence falls into.
    numbers = ((ends - np.diff(ends, prepend=0) / 2) / size).astype(int)
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(sequences)]
    return [sequences[begin:end] for begin, end in pairwise(borders)]


class _Blas:
    """The number of threads of OpenBLAS, if the process has loaded it.

    Attributes:
        threads: the number at first; None if there is no OpenBLAS.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._set = getattr(library, "openblas_set_num_threads", None)
        self.threads: int | None = library.openblas_get_num_threads() if self._set else None

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """Let each thread that multiplies matrices do it alone. Otherwise, products of several threads take turns."""
        if self._set is None:
            yield
            return
        self._set(1)
        try:
            yield
        finally:
            self._set(self.threads)
