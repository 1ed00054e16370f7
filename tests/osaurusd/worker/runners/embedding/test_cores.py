"""A batch whose parts are computed on several cores has the same rows as one that is computed at once."""

import ctypes
import threading

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.worker.runners.embedding.cores import Cores, split
from osaurusd.worker.runners.embedding.inputs import TokenSequence


@pytest.fixture
def cores():
    cores = Cores(3)
    yield cores
    cores.close()


def sequences(*lengths):
    return [TokenSequence(list(range(length))) for length in lengths]


def lengths(part):
    return np.array([[len(each)] for each in part])


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([500], 4, [[500]]),
        ([256] * 8, 4, [[256] * 2] * 4),
        ([10] * 20, 4, [[10] * 13, [10] * 7]),  # parts have at least 128 tokens
        ([5, 5, 5, 1000], 2, [[5, 5, 5], [1000]]),
        ([200, 200, 200], 2, [[200], [200, 200]]),
    ],
)
def test_parts_have_about_the_same_number_of_tokens(sizes, count, expected):
    assert expected == [[len(each) for each in part] for part in split(sequences(*sizes), count)]


@pytest.mark.parametrize("count", range(1, 9))
def test_each_sequence_is_in_one_part(count):
    sizes = np.sort(np.random.default_rng(count).integers(1, 300, 23)).tolist()
    parts = split(sequences(*sizes), count)

    assert sizes == [len(each) for part in parts for each in part]
    assert len(parts) <= count
    assert all(parts)


def test_rows_keep_their_order_and_parts_run_at_the_same_time(cores):
    together = threading.Barrier(3)

    def encode(part):
        if len(part[0]) > 600:  # the three that are computed first
            together.wait(60)
        return lengths(part)

    sizes = [100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert sizes == cores.encode(sequences(*sizes), encode)[:, 0].tolist()


def test_part_that_fails_fails_the_batch_after_the_others_have_ended(cores):
    ended = []

    def encode(part):
        if len(part[0]) == 1000:
            raise RuntimeError("out of memory")
        ended.append(len(part[0]))
        return lengths(part)

    for _ in range(20):
        ended.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            cores.encode(sequences(400, 500, 600, 1000), encode)
        count = len(ended)
        assert 3 == len(cores.encode(sequences(400, 500, 600), encode))
        assert count + 3 == len(ended)


def test_matrices_are_multiplied_on_one_core_while_parts_are_computed(cores, monkeypatch):
    class OpenBlas:
        threads = 3

        def openblas_get_num_threads(self):
            return self.threads

        def openblas_set_num_threads(self, count):
            self.threads = count

    library = OpenBlas()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    several = Cores()
    seen = []

    def encode(part):
        seen.append(library.threads)
        return lengths(part)

    try:
        several.encode(sequences(500), encode)
        assert [3] == seen
        several.encode(sequences(500, 500), encode)
        assert [3, 1, 1] == seen
        assert 3 == library.threads
    finally:
        several.close()


def test_arrays_of_all_threads_are_computed(cores):
    weights = mx.random.normal((64, 64), key=mx.random.key(1))
    mx.eval(weights)

    def encode(part):
        rows = mx.array(lengths(part)).astype(mx.float32) * weights[:1]
        return np.array(mx.softmax(rows @ weights, axis=-1))

    several = sequences(*range(100, 900, 50))
    np.testing.assert_allclose(cores.encode(several, encode), encode(several), rtol=1e-5)
