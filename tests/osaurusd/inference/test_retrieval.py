import struct

from osaurusd.inference.retrieval import Vectors


def test_data_is_divided_into_one_row_for_each_vector():
    vectors = Vectors(dimensions=2, data=struct.pack("<6f", 0, 1, 2, 3, 4, 5))

    assert [struct.pack("<2f", 0, 1), struct.pack("<2f", 2, 3), struct.pack("<2f", 4, 5)] == list(vectors.rows())
    assert [[0, 1], [2, 3], [4, 5]] == list(vectors.numbers())
