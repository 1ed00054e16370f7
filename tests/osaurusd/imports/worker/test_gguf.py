import contextlib
import random
import struct

import numpy as np
import pytest

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker.gguf import MAX_HEADER_BYTES, read_header

from .gguf_writer import write_gguf

METADATA = {
    "general.architecture": "llama",
    "some.number": 7,
    "some.negative": -7,
    "some.float": 0.5,
    "some.flag": True,
    "some.texts": ["a", "", "日本"],
    "some.numbers": [1, 2, 3],
    "some.flags": [True, False],
    "some.nested": [[1, 2], [3]],
}
TENSORS = {
    "a.weight": ("F32", np.arange(6).reshape(2, 3)),
    "b.weight": ("Q8_0", np.arange(128).reshape(2, 64)),
    "c.weight": ("F16", np.arange(5)),
}


@pytest.fixture
def small(tmp_path):
    return write_gguf(tmp_path / "small.gguf", METADATA, TENSORS)


def error_of(path):
    with pytest.raises(ImportFailed) as caught:
        read_header(path)
    assert caught.value.message.startswith(f"{path.name}: ")
    return caught.value.message


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_a_header_is_read_back_as_written(tmp_path, version, alignment):
    metadata = METADATA | {"general.alignment": alignment}
    path = write_gguf(tmp_path / "x.gguf", metadata, TENSORS, version=version, alignment=alignment)

    header = read_header(path)

    assert {key: header.metadata._values[key] for key in metadata} == metadata
    assert {name: (tensor.type, tensor.shape) for name, tensor in header.tensors.items()} == {
        "a.weight": ("F32", (2, 3)),
        "b.weight": ("Q8_0", (2, 64)),
        "c.weight": ("F16", (5,)),
    }
    assert [tensor.nbytes for tensor in header.tensors.values()] == [24, 2 * 2 * 34, 10]
    data = path.read_bytes()
    first, last = header.tensors["a.weight"], header.tensors["c.weight"]
    assert np.frombuffer(data[first.offset :][:24], "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(data[last.offset :][:10], "<f2").tolist() == [0, 1, 2, 3, 4]


def test_header_of_a_real_file_is_read(smollm_gguf):
    header = read_header(smollm_gguf)

    assert len(header.tensors) == 272
    assert len(header.metadata.texts("tokenizer.ggml.tokens")) == 49152
    assert header.tensors["token_embd.weight"].type == "Q8_0"
    assert max(tensor.offset + tensor.nbytes for tensor in header.tensors.values()) <= smollm_gguf.stat().st_size


def test_a_truncated_file_is_rejected(small):
    data = small.read_bytes()
    end = max(tensor.offset + tensor.nbytes for tensor in read_header(small).tensors.values())
    for length in range(end):
        small.write_bytes(data[:length])
        error_of(small)


def test_a_tensor_beyond_the_end_of_the_file_is_reported(small):
    small.write_bytes(small.read_bytes()[:-40])

    assert 'truncated: tensor "c.weight"' in error_of(small)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_file_is_read_or_rejected(small, seed):
    rng = random.Random(seed)
    valid = small.read_bytes()
    for _ in range(40):
        data = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        small.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        with contextlib.suppress(ImportFailed):
            read_header(small)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"magic": b"GGML"}, "does not start with GGUF"),
        ({"version": 1}, "GGUF version 1"),
        ({"version": 4}, "GGUF version 4"),
        ({"version": 3 << 24}, "big-endian"),
    ],
)
def test_other_formats_are_rejected(tmp_path, layout, reason):
    assert reason in error_of(write_gguf(tmp_path / "x.gguf", METADATA, TENSORS, **layout))


def test_an_empty_file_is_rejected(tmp_path):
    (tmp_path / "x.gguf").touch()

    assert "not a GGUF file" in error_of(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (struct.pack("<QQ", 1 << 62, 0), "declares 4611686018427387904 tensors"),
        (struct.pack("<QQ", 0, 1 << 40), "declares 1099511627776 metadata keys"),
        (struct.pack("<QQQ", 0, 1, 1 << 63) + bytes(9), "truncated inside its header"),
        (struct.pack("<QQQ1sI", 0, 1, 1, b"k", 13), "unknown value type 13"),
        (struct.pack("<QQQ1sIB", 0, 1, 1, b"k", 7, 2), "neither 0 nor 1"),
        (struct.pack("<QQQ1sIQ2s", 0, 1, 1, b"k", 8, 2, b"\xff\xfe"), "not valid UTF-8"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 1 << 60), 'items of "k"'),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, 1 << 60), 'items of "k"'),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 99, 0), "items of the unknown value type 99"),
        (struct.pack("<QQQ1sI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 9, "nests arrays"),
        (struct.pack("<QQQ1sIIQ1sII", 0, 2, 1, b"k", 4, 0, 1, b"k", 4, 0), '"k" is duplicated'),
        (struct.pack("<QQQ17sII", 0, 1, 17, b"general.alignment", 4, 3), "general.alignment is 3"),
        (struct.pack("<QQQ17sII", 0, 1, 17, b"general.alignment", 4, 0), "general.alignment is 0"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 32, 99, 0), "unknown type 99"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 0, 32, 0, 0), "0 dimensions"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 5, 32, 0, 0), "5 dimensions"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 0, 0, 0), "invalid shape [0]"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 33, 8, 0), "invalid shape [33]"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 32, 0, 8), "not aligned"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 1 << 60, 0, 0), 'truncated: tensor "t"'),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 32, 0, 1 << 62), 'truncated: tensor "t"'),
        (struct.pack("<QQ", 2, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 1, 0, 0) * 2 + bytes(64), '"t" is duplicated'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_headers_are_rejected(tmp_path, body, reason):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body)

    assert reason in error_of(path)


def test_an_oversized_header_is_rejected(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, MAX_HEADER_BYTES + 1))
    with path.open("r+b") as stream:
        stream.truncate(2 * MAX_HEADER_BYTES)

    assert "header exceeds" in error_of(path)
