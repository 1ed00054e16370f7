"""Frames over a real socketpair: what is sent arrives, and what is no frame is told from what never came."""

import asyncio
import contextlib
import socket
import struct
from typing import get_args

import pytest

from osaurusd.inference.events import Completed, Delta, Finished, FinishReason, Logprob, TokenLogprob, ToolCallDelta
from osaurusd.inference.request import (
    ChatPrompt,
    JsonObject,
    JsonSchema,
    Message,
    RequiredToolCalls,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from osaurusd.rpc import framing, messages
from osaurusd.wire.admin import FileState
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage

SAMPLING = SamplingParams(
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.1,
    frequency_penalty=-2.0,
    presence_penalty=2.0,
    logit_bias=[(0, -100.0), (49151, 0.5)],
    seed=-(2**63),
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"ü": {}}}}}
TALK = ChatPrompt(
    messages=[
        Message(role="system"),
        Message(role="user", content='Grüße, "世界" 🦕\n\x00', name="Ann"),
        Message(role="assistant", reasoning="hm", tool_calls=[ToolCall(id="call_1", name="f", arguments='{"ü":1}')]),
        Message(role="tool", content="{}", tool_call_id="call_1"),
    ],
    tools=[TOOL],
    template={"enable_thinking": False, "deep": [{"x": None}]},
)
TOKEN = TokenLogprob(
    text="�",
    bytes=[0xF0, 0x9F],
    logprob=-0.25,
    top=[Logprob(text="a", bytes=[97], logprob=-1e-9), Logprob(text="", bytes=[])],
)

TO_WORKER = [
    messages.Load(path="/models/x"),
    messages.Load(
        path="/models/x",
        context_length=8192,
        dequantize="always",
        memory_limit_bytes=2**40,
        cache_limit_bytes=0,
        wired_limit_bytes=1,
        prefix_cache_bytes=2**33,
        max_waiting=0,
        stall_seconds=0.05,
    ),
    messages.Generate(id=1, prompt=TALK, sampling=SamplingParams(temperature=0)),
    messages.Generate(
        id=2**53,
        prompt=TextPrompt(text="Grüße 🦕\n", suffix=""),
        sampling=SAMPLING,
        n=8,
        max_tokens=0,
        stop=["\n\n", "###"],
        logprobs=20,
        echo=True,
        call_tools=False,
        parallel_calls=False,
    ),
    *[
        messages.Generate(id=3, prompt=TokenPrompt(tokens=[0, 2**31 - 1]), sampling=SAMPLING, constraint=constraint)
        for constraint in (
            JsonObject(),
            JsonSchema(schema={"type": "object", "properties": {"ü": {"enum": [1, None, "x"]}}}),
            RequiredToolCalls(names=["f", "g"], parallel=True),
        )
    ],
    messages.Limits(),
    messages.Limits(memory_limit_bytes=2**40, cache_limit_bytes=0, wired_limit_bytes=1, prefix_cache_bytes=2**33),
    messages.Cancel(id=3),
    messages.Shutdown(),
]
FROM_WORKER = [
    messages.Hello(version="1.2.3"),
    messages.Hello(version="1.2.3", import_seconds=1.5),
    messages.Loaded(device="gpu", dtype="bfloat16", memory_bytes=2**40, batched=True),
    messages.Loaded(device="gpu", dtype="4-bit", memory_bytes=1, batched=False, least_bytes=2, working_set_bytes=2**40),
    messages.LoadFailed(message="no"),
    Delta(id=1),
    Delta(id=1, index=7, text="世界", reasoning="🦕", tokens=[TOKEN, TokenLogprob(text="", bytes=[])]),
    Delta(id=1, calls=[ToolCallDelta(index=0, id="call_1", name="f"), ToolCallDelta(index=0, arguments='{"')]),
    *[Finished(id=1, index=3, reason=reason) for reason in get_args(FinishReason)],
    Completed(id=1, prompt_tokens=3, completion_tokens=0),
    Completed(id=1, prompt_tokens=3, completion_tokens=4, cached_tokens=2, reasoning_tokens=1),
    *[messages.Failed(id=1, code=code, message="why") for code in ErrorCode],
    messages.Failed(id=1, code=ErrorCode.INVALID_REQUEST, message="why", param="messages[0].role"),
    messages.Stats(active_bytes=1, cache_bytes=0),
    messages.Stats(active_bytes=1, cache_bytes=0, prefix_cache_bytes=2**40, reserved_bytes=1),
    messages.Pulse(progress=2**40, reserved_bytes=1),
]
FROM_IMPORTER = [
    messages.Progress(stage="convert", done=0, total=2**40),
    messages.Imported(),
    messages.ImportFailure(message="not a GGUF file"),
]
FROM_STORE = [
    messages.Deletion(freed_bytes=2**40),
    messages.Hashing(file="ü.safetensors", done=0, total=1),
    messages.Hashed(files=[messages.HashedFile(name=str(state), bytes=1, state=state) for state in FileState]),
    messages.StoreFailure(message="no"),
]
FROM_HUB = [
    *(messages.Pulling(stage=stage, done=1, total=2**40, commit="c" * 40, note="waiting") for stage in PullStage),
    messages.Pulled(commit="c" * 40, bytes=2**40),
    messages.HubModels(models=[messages.HubModel(repo="org/name", bytes=1, gated=True)]),
    *(messages.HubFailure(code=code, message="no") for code in ErrorCode),
]
DIRECTIONS = [
    pytest.param(TO_WORKER, messages.ToWorker, messages.TO_WORKER, id="to worker"),
    pytest.param(FROM_WORKER, messages.FromWorker, messages.FROM_WORKER, id="from worker"),
    pytest.param(FROM_IMPORTER, messages.FromImporter, messages.FROM_IMPORTER, id="from importer"),
    pytest.param(FROM_STORE, messages.FromStore, messages.FROM_STORE, id="from store"),
    pytest.param(FROM_HUB, messages.FromHub, messages.FROM_HUB, id="from hub"),
]


@contextlib.asynccontextmanager
async def reading(decoder):
    """A reader of this direction, and the raw socket at the other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream, writer = await framing.connect(ours.detach())
    try:
        with theirs:
            yield framing.FrameReader(stream, decoder), theirs
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def announced(length, body=b""):
    return struct.pack(">I", length) + body


def framed(body):
    return announced(len(body), body)


async def send(peer, data):
    await asyncio.get_running_loop().sock_sendall(peer, data)


@pytest.mark.parametrize(("samples", "union", "_"), DIRECTIONS)
def test_there_is_a_sample_of_every_frame(samples, union, _):
    assert {type(sample) for sample in samples} == set(get_args(union))


@pytest.mark.parametrize(
    ("frame", "decoder"),
    [
        pytest.param(frame, direction.values[2], id=f"{type(frame).__name__}-{at}")
        for direction in DIRECTIONS
        for at, frame in enumerate(direction.values[0])
    ],
)
async def test_every_frame_arrives_as_it_was_sent(frame, decoder):
    async with reading(decoder) as (reader, peer):
        await send(peer, framing.encode([frame]))
        assert await reader.read() == frame


@pytest.mark.parametrize(("samples", "_", "decoder"), DIRECTIONS)
async def test_frames_of_one_write_arrive_in_order_and_then_the_end(samples, _, decoder):
    async with reading(decoder) as (reader, peer):
        await send(peer, framing.encode(samples))
        peer.shutdown(socket.SHUT_WR)
        assert [await reader.read() for _ in samples] == samples
        assert await reader.read() is None


async def test_a_frame_may_arrive_byte_by_byte():
    async with reading(messages.FROM_WORKER) as (reader, peer):
        waiting = asyncio.create_task(reader.read())
        for byte in framing.encode([messages.Hello(version="1")]):
            await send(peer, bytes([byte]))
            await asyncio.sleep(0)
        assert await waiting == messages.Hello(version="1")


async def test_a_frame_may_be_larger_than_any_buffer():
    long = Delta(id=1, text="🦕" * 1_000_000)
    async with reading(messages.FROM_WORKER) as (reader, peer):
        received, _ = await asyncio.gather(reader.read(), send(peer, framing.encode([long])))
        assert received == long


async def test_frames_travel_the_other_way_too():
    ours, theirs = socket.socketpair()
    one, two = await framing.connect(ours.detach()), await framing.connect(theirs.detach())
    one[1].write(framing.encode([messages.Cancel(id=1)]))
    two[1].write(framing.encode([messages.Hello(version="1")]))
    assert await framing.FrameReader(two[0], messages.TO_WORKER).read() == messages.Cancel(id=1)
    assert await framing.FrameReader(one[0], messages.FROM_WORKER).read() == messages.Hello(version="1")
    for _, writer in (one, two):
        writer.close()
        await writer.wait_closed()


def test_a_frame_is_its_length_and_its_json():
    assert framing.encode([messages.Shutdown(), messages.Cancel(id=7)]) == (
        b'\x00\x00\x00\x13{"type":"shutdown"}' + b'\x00\x00\x00\x18{"type":"cancel","id":7}'
    )


def test_no_frames_are_no_bytes():
    assert framing.encode([]) == b""


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\x00", id="half a length"),
        pytest.param(announced(100), id="a length alone"),
        pytest.param(announced(100, b'{"type":'), id="half a body"),
    ],
)
async def test_an_end_in_the_middle_of_a_frame_is_the_end(sent):
    async with reading(messages.FROM_WORKER) as (reader, peer):
        await send(peer, framing.encode([messages.Hello(version="1")]) + sent)
        peer.close()
        assert await reader.read() == messages.Hello(version="1")
        assert await reader.read() is None
        assert await reader.read() is None


async def test_a_peer_that_resets_the_connection_has_ended():
    ours, theirs = socket.socketpair()
    stream, writer = await framing.connect(ours.detach())
    writer.write(framing.encode([messages.Shutdown()]))
    await writer.drain()
    theirs.close()  # with bytes unread, which is a reset
    assert await framing.FrameReader(stream, messages.FROM_WORKER).read() is None
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b'{"type":"hello","version":"1"', id="cut JSON"),
        pytest.param(b'{"type":"hello","version":"1"}x', id="more than JSON"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no type"),
        pytest.param(b'{"type":"bonjour"}', id="unknown type"),
        pytest.param(b'{"type":1}', id="wrong type of type"),
        pytest.param(b'{"type":"hello"}', id="missing field"),
        pytest.param(b'{"type":"hello","version":1}', id="wrong type of field"),
        pytest.param(b'{"type":"failed","id":1,"code":"whatever","message":""}', id="unknown code"),
        pytest.param(b'{"type":"finished","id":1,"reason":"tired"}', id="reason"),
        pytest.param(b'{"type":"hello","version":"\xff"}', id="not UTF-8"),
        pytest.param(b'{"type":"hello","version":"\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"x":' * 100_000, id="nested too deeply"),
    ],
)
async def test_what_is_no_frame_is_an_error(body):
    async with reading(messages.FROM_WORKER) as (reader, peer):
        sending = asyncio.create_task(send(peer, framed(body)))
        with pytest.raises(framing.FrameError):
            await reader.read()
        await sending


@pytest.mark.parametrize(("samples", "_", "decoder"), DIRECTIONS)
async def test_frames_of_other_directions_are_errors(samples, _, decoder):
    foreign = [
        frame for frame in TO_WORKER + FROM_WORKER + FROM_IMPORTER + FROM_STORE + FROM_HUB if frame not in samples
    ]
    assert foreign
    async with reading(decoder) as (reader, peer):
        for frame in foreign:
            await send(peer, framing.encode([frame]))
            with pytest.raises(framing.FrameError):
                await reader.read()


@pytest.mark.parametrize("length", [framing.MAX_FRAME_BYTES + 1, 2**32 - 1, int.from_bytes(b"HTTP")])
async def test_a_length_over_the_limit_is_an_error_at_once(length):
    async with reading(messages.FROM_WORKER) as (reader, peer):
        await send(peer, announced(length))
        with pytest.raises(framing.FrameError, match=str(length)):
            await reader.read()


async def test_a_frame_of_just_the_limit_is_taken(monkeypatch):
    data = framing.encode([messages.Hello(version="1")])
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", len(data) - 4)
    async with reading(messages.FROM_WORKER) as (reader, peer):
        await send(peer, data)
        assert await reader.read() == messages.Hello(version="1")
        monkeypatch.setattr(framing, "MAX_FRAME_BYTES", len(data) - 5)
        await send(peer, data)
        with pytest.raises(framing.FrameError):
            await reader.read()
