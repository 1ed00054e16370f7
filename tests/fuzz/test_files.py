"""Random frames and model files are read or rejected with the expected error. These tests start no processes."""

import asyncio
import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import gguf
from osaurusd.inference.events import Completed, Delta, Usage
from osaurusd.models import metadata, safetensors
from osaurusd.rpc import framing, messages
from tests.fuzz import inputs
from tests.osaurusd.imports.worker.gguf_writer import write_gguf
from tests.osaurusd.models import disk

examples = settings(max_examples=100, derandomize=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@st.composite
def corrupted(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes that are truncated or partly overwritten."""
    if draw(st.booleans()):
        return valid[: draw(st.integers(0, len(valid)))]
    corrupted = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(valid) - 1))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f"])))
        corrupted[start : start + len(piece)] = piece
    return bytes(corrupted)


FRAMES = framing.encode(
    [
        messages.Hello(version="1"),
        messages.Output(id=1, event=Delta(text="a")),
        messages.Output(id=1, event=Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))),
    ]
)
json_frames = inputs.values.map(lambda value: json.dumps(value).encode()).map(
    lambda body: struct.pack(">II", len(body), 0) + body
)


@examples
@given(st.one_of(st.binary(max_size=64), corrupted(FRAMES), json_frames))
def test_random_bytes_are_frames_or_a_frame_error(data: bytes) -> None:
    async def read() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        reader = framing.FrameReader(stream, messages.FROM_WORKER)
        while (frame := await reader.read()) is not None:
            assert isinstance(frame, messages.Frame)

    with contextlib.suppress(framing.FrameError):
        asyncio.run(read())


@examples
@given(
    st.one_of(
        st.binary(max_size=64),
        corrupted(disk.tensors()),
        inputs.values.map(lambda v: disk.with_header(json.dumps(v).encode())),
    )
)
def test_random_weight_file_is_complete_or_reported_as_missing(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    weights = safetensors.read(folder)
    assert weights.missing or weights.nbytes <= len(content)


@examples
@given(inputs.values)
def test_random_weight_index_is_reported_as_missing(folder: Path, value: object) -> None:
    model = folder / "indexed"
    model.mkdir(exist_ok=True)
    for content in (value, {"weight_map": value}, {"weight_map": {"a": value}}):
        (model / safetensors.INDEX).write_text(json.dumps(content))
        assert safetensors.read(model).missing


@examples
@given(st.one_of(st.binary(max_size=64), inputs.values.map(lambda value: json.dumps(value).encode())))
def test_random_config_is_an_object_or_a_value_error(folder: Path, content: bytes) -> None:
    path = folder / "config.json"
    path.write_bytes(content)
    try:
        config = metadata.read_json_object(path)
    except ValueError:
        return
    metadata.architecture(config)
    metadata.context_length(config)
    metadata.quantization(config)


@examples
@given(inputs.hostile_values, st.sampled_from(["model_type", "max_position_embeddings", "quantization", "text_config"]))
def test_config_values_may_have_any_type(value: object, key: str) -> None:
    config = {"model_type": "llama", key: value}
    assert isinstance(metadata.architecture(config), str | None)
    assert isinstance(metadata.context_length(config), int | None)
    assert isinstance(metadata.quantization(config), str | None)


@pytest.fixture(scope="module")
def gguf_bytes(folder: Path) -> bytes:
    metadata = {
        "general.architecture": "llama",
        "a.list": ["x", "y"],
        "a.numbers": [1, 2],
        "a.flag": True,
        "a.real": 1.5,
    }
    path = write_gguf(folder / "valid.gguf", metadata, {"t": ("F32", np.ones((2, 4), np.float32))})
    return path.read_bytes()


@examples
@given(st.data())
def test_random_gguf_file_is_read_or_rejected(folder: Path, gguf_bytes: bytes, data: st.DataObject) -> None:
    path = folder / "corrupted.gguf"
    path.write_bytes(
        data.draw(st.one_of(corrupted(gguf_bytes), st.binary(max_size=64).map(lambda tail: gguf_bytes[:24] + tail)))
    )
    with contextlib.suppress(ImportFailed):
        header = gguf.read_header(path)
        assert all(tensor.offset <= path.stat().st_size for tensor in header.tensors.values())
