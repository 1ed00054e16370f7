"""Frames and model files of any bytes: read, or refused with the error that is meant for it. No processes."""

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
from osaurusd.imports.worker import gguf_file
from osaurusd.inference.events import Completed, Delta, Usage
from osaurusd.models import metadata, safetensors
from osaurusd.rpc import framing, messages
from tests.fuzz import inputs
from tests.osaurusd.imports.worker.gguf_writer import write_gguf
from tests.osaurusd.models import disk

few = settings(max_examples=200, derandomize=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which some were overwritten, or that end too early."""
    if draw(st.booleans()):
        return whole[: draw(st.integers(0, len(whole)))]
    spoiled = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(whole) - 1))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f"])))
        spoiled[at : at + len(piece)] = piece
    return bytes(spoiled)


FRAMES = framing.encode(
    [
        messages.Hello(version="1"),
        messages.Output(id=1, event=Delta(text="a")),
        messages.Output(id=1, event=Completed(usage=Usage(prompt_tokens=1, completion_tokens=1))),
    ]
)
framed = inputs.values.map(lambda value: json.dumps(value).encode()).map(
    lambda body: struct.pack(">II", len(body), 0) + body
)


@few
@given(st.one_of(st.binary(max_size=64), spoiled(FRAMES), framed))
def test_a_stream_of_any_bytes_is_frames_and_an_end_or_a_frame_error(sent: bytes) -> None:
    async def read() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(sent)
        stream.feed_eof()
        reader = framing.FrameReader(stream, messages.FROM_WORKER)
        while (frame := await reader.read()) is not None:
            assert isinstance(frame, messages.Frame)

    with contextlib.suppress(framing.FrameError):
        asyncio.run(read())


@few
@given(
    st.one_of(
        st.binary(max_size=64),
        spoiled(disk.tensors()),
        inputs.values.map(lambda v: disk.with_header(json.dumps(v).encode())),
    )
)
def test_a_weight_file_of_any_bytes_is_complete_or_said_to_be_wrong(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    found = safetensors.read(folder)
    assert found.missing or found.nbytes <= len(content)


@few
@given(inputs.values)
def test_a_weight_index_of_any_json_is_complete_or_said_to_be_wrong(folder: Path, value: object) -> None:
    place = folder / "indexed"
    place.mkdir(exist_ok=True)
    for content in (value, {"weight_map": value}, {"weight_map": {"a": value}}):
        (place / safetensors.INDEX).write_text(json.dumps(content))
        assert safetensors.read(place).missing


@few
@given(st.one_of(st.binary(max_size=64), inputs.values.map(lambda value: json.dumps(value).encode())))
def test_a_config_of_any_bytes_is_an_object_or_a_value_error(folder: Path, content: bytes) -> None:
    path = folder / "config.json"
    path.write_bytes(content)
    try:
        config = metadata.read_json_object(path)
    except ValueError:
        return
    metadata.architecture(config)
    metadata.context_length(config)
    metadata.quantization(config)


@few
@given(inputs.nasty, st.sampled_from(["model_type", "max_position_embeddings", "quantization", "text_config"]))
def test_what_a_config_says_may_be_of_any_type(value: object, key: str) -> None:
    config = {"model_type": "llama", key: value}
    assert isinstance(metadata.architecture(config), str | None)
    assert isinstance(metadata.context_length(config), int | None)
    assert isinstance(metadata.quantization(config), str | None)


@pytest.fixture(scope="module")
def gguf(folder: Path) -> bytes:
    metadata = {
        "general.architecture": "llama",
        "a.list": ["x", "y"],
        "a.numbers": [1, 2],
        "a.flag": True,
        "a.real": 1.5,
    }
    path = write_gguf(folder / "whole.gguf", metadata, {"t": ("F32", np.ones((2, 4), np.float32))})
    return path.read_bytes()


@few
@given(st.data())
def test_a_gguf_file_of_any_bytes_is_read_or_refused(folder: Path, gguf: bytes, data: st.DataObject) -> None:
    path = folder / "spoiled.gguf"
    path.write_bytes(data.draw(st.one_of(spoiled(gguf), st.binary(max_size=64).map(lambda tail: gguf[:24] + tail))))
    with contextlib.suppress(ImportFailed):
        header = gguf_file.read_header(path)
        assert all(tensor.offset <= path.stat().st_size for tensor in header.tensors.values())
