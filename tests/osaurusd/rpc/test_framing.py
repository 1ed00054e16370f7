"""Frames over a real socketpair: what is sent arrives, and invalid data is distinguished from end of file."""

import asyncio
import contextlib
import socket
import struct
from typing import get_args

import msgspec
import pytest

from osaurusd.inference.events import (
    CandidateScores,
    Completed,
    Delta,
    Finished,
    FinishReason,
    Logprob,
    Progress,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from osaurusd.inference.request import (
    AudioPart,
    ChatPrompt,
    Continuation,
    GenerationRequest,
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    RequiredToolCalls,
    SamplingParams,
    ScoringRequest,
    TextPart,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolResultPart,
)
from osaurusd.inference.retrieval import DenseLayer, EmbedRequest, Pipeline, RerankRequest, Scores, Vectors
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode

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
CHAT = ChatPrompt(
    messages=[
        Message(role="system"),
        Message.from_text("user", 'Grüße, "世界" 🦕\n\x00', name="Ann"),
        Message(role="user", content=[ImagePart(blob=0, media_type="image/png"), AudioPart(blob=1, media_type="a/b")]),
        Message(role="assistant", reasoning="hm", tool_calls=[ToolCall(id="call_1", name="f", arguments='{"ü":1}')]),
        Message(role="tool", content=[ToolResultPart(call_id="call_1", content=[TextPart(text="{}")], is_error=True)]),
    ],
    tools=[Tool(name="f", description="d", parameters={"type": "object", "properties": {"ü": {}}})],
    template_variables={"enable_thinking": False, "deep": [{"x": None}]},
)
SCORING = ScoringRequest(prompt=CHAT, continuations=[Continuation(text="世界?", candidates=["A", "B"])], truncate=True)
TOKEN = TokenLogprob(
    text="\ufffd",
    bytes=[0xF0, 0x9F],
    logprob=-0.25,
    top=[Logprob(text="a", bytes=[97], logprob=-1e-9), Logprob(text="", bytes=[])],
)


def generate(id_, prompt, sampling=SAMPLING, *, continuation=False, **fields):
    request = GenerationRequest(prompt=prompt, sampling=sampling, **fields)
    return messages.Generate(id=id_, request=request, continuation=continuation)


def output(id_, event):
    return messages.Output(id=id_, event=event)


def delta(text):
    return output(1, Delta(text=text))


CONSTRAINTS = (
    JsonObject(),
    JsonSchema(schema={"type": "object", "properties": {"ü": {"enum": [1, None, "x"]}}}),
    RequiredToolCalls(names=["f", "g"], max_calls=4),
)
PIPELINE = Pipeline(
    pooling=["cls", "mean"],
    pools_prompt=False,
    layers=[DenseLayer(folder="2_Dense", activation="tanh")],
    normalize=True,
    prompts={"query": "query: "},
    default_prompt="query",
    max_tokens=512,
    lowercase=True,
    matryoshka=True,
    matryoshka_dimensions=[64],
)
PLAN = messages.Plan(number=1, operations=msgspec.Raw(b'[["clear"]]'))
TO_WORKER = [
    messages.Load(path="/models/x"),
    messages.Load(path="/models/x", task="embed", pipeline=PIPELINE),
    messages.Embed(
        id=1,
        request=EmbedRequest(
            inputs=[TextPrompt(text="Grüße"), TokenPrompt(tokens=[0, 1])],
            dimensions=64,
            prompt_name="",
            truncate=True,
        ),
    ),
    messages.Rerank(id=2, request=RerankRequest(query="q", documents=["a", ""], instruction="i", truncate=True)),
    messages.Load(
        path="/models/x",
        context_length=8192,
        dequantize="always",
        memory_limit_bytes=2**40,
        cache_limit_bytes=0,
        prefix_cache_bytes=2**33,
        max_waiting=0,
        stall_seconds=0.05,
        wire="always",
    ),
    generate(1, CHAT, SamplingParams(temperature=0)),
    generate(
        2**53,
        TextPrompt(text="Grüße 🦕\n", suffix=""),
        continuation=True,
        n=8,
        max_tokens=0,
        stop=["\n\n", "###"],
        logprobs=20,
        echo=True,
        parse_tool_calls=False,
        parallel_tool_calls=False,
    ),
    *[generate(3, TokenPrompt(tokens=[0, 2**31 - 1]), constraint=constraint) for constraint in CONSTRAINTS],
    messages.Score(id=4, request=SCORING),
    messages.Limits(),
    messages.Load(path="/models/x", rank=messages.RankSpec(rank=1, size=2, split="tensor", address="10.0.0.2")),
    messages.Load(
        path="/models/x",
        rank=messages.RankSpec(rank=0, size=2, split="pipeline", address="10.0.0.1", layers=(10, 14)),
    ),
    messages.Connect(addresses=["10.0.0.1:1", "10.0.0.2:2"], secret="s", epoch=3, timeout_seconds=9.0),
    PLAN,
    messages.Cancel(id=3),
    messages.DropCaches(),
    messages.Shutdown(),
]
FROM_WORKER = [
    messages.Hello(version="1.2.3"),
    messages.Hello(version="1.2.3", import_seconds=1.5),
    messages.Loaded(device="gpu", dtype="bfloat16", memory_bytes=2**40, batched=True),
    messages.Loaded(
        device="gpu", dtype="4-bit", memory_bytes=1, batched=False, serving_bytes=2, working_set_bytes=2**40
    ),
    messages.LoadFailed(message="no"),
    output(1, Started(prompt_tokens=3, cached_tokens=2)),
    output(1, Progress(prompt_tokens=3, prefilled=2, cached_tokens=1)),
    output(1, Vectors(dimensions=2, truncated=[0])),
    output(1, Scores(values=[0.5, 1.0], truncated=[1])),
    output(1, Delta()),
    output(1, Delta(index=7, text="世界", reasoning="🦕", logprobs=[TOKEN, TokenLogprob(text="", bytes=[])])),
    output(
        1, Delta(tool_calls=[ToolCallDelta(index=0, id="call_1", name="f"), ToolCallDelta(index=0, arguments='{"')])
    ),
    *[output(1, Finished(index=3, reason=reason, stop="###")) for reason in get_args(FinishReason)],
    output(1, CandidateScores(logprobs=[[-0.5, -1e-9], [-3.5]])),
    output(1, Completed(usage=Usage(prompt_tokens=3))),
    output(
        1,
        Completed(
            usage=Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2, reasoning_tokens=1),
            timings=Timings(queue=0.1, load=1.0, prefill=0.5, decode=2.0),
        ),
    ),
    *[messages.Failed(id=1, code=code, message="why") for code in ErrorCode],
    messages.Failed(id=1, code=ErrorCode.INVALID_REQUEST, message="why", location=("prompt", "messages", 0)),
    messages.Stats(active_bytes=1, cache_bytes=0),
    messages.Stats(active_bytes=1, cache_bytes=0, prefix_cache_bytes=2**40, reserved_bytes=1),
    messages.Pulse(progress=2**40, reserved_bytes=1, plan=2**40),
    messages.RankReady(port=65535),
    PLAN,
]
DIRECTIONS = [
    pytest.param(TO_WORKER, messages.ToWorker, messages.TO_WORKER, id="to worker"),
    pytest.param(FROM_WORKER, messages.FromWorker, messages.FROM_WORKER, id="from worker"),
]


@contextlib.asynccontextmanager
async def frame_reader(decoder):
    """Open a reader of this direction, and the raw socket at the other end."""
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


def prefix(header_bytes, *blob_lengths):
    return struct.pack(f">II{len(blob_lengths)}I", header_bytes, len(blob_lengths), *blob_lengths)


def with_prefix(header):
    return prefix(len(header)) + header


async def send(peer, data):
    await asyncio.get_running_loop().sock_sendall(peer, data)


# Frames without blobs


@pytest.mark.parametrize(("samples", "union", "_"), DIRECTIONS)
def test_the_samples_cover_every_message(samples, union, _):
    assert {type(sample) for sample in samples} == set(get_args(union))


@pytest.mark.parametrize(
    ("frame", "decoder"),
    [
        pytest.param(frame, direction.values[2], id=f"{type(frame).__name__}-{number}")
        for direction in DIRECTIONS
        for number, frame in enumerate(direction.values[0])
    ],
)
async def test_every_message_arrives_unchanged(frame, decoder):
    async with frame_reader(decoder) as (reader, peer):
        await send(peer, framing.encode([frame]))
        assert await reader.read() == frame


@pytest.mark.parametrize(("samples", "_", "decoder"), DIRECTIONS)
async def test_frames_of_one_write_arrive_in_order_before_the_end(samples, _, decoder):
    async with frame_reader(decoder) as (reader, peer):
        await send(peer, framing.encode(samples))
        peer.shutdown(socket.SHUT_WR)
        assert [await reader.read() for _ in samples] == samples
        assert await reader.read() is None


async def test_a_frame_may_arrive_byte_by_byte():
    async with frame_reader(messages.FROM_WORKER) as (reader, peer):
        reading = asyncio.create_task(reader.read())
        for byte in framing.encode([messages.Hello(version="1")]):
            await send(peer, bytes([byte]))
            await asyncio.sleep(0)
        assert await reading == messages.Hello(version="1")


async def test_a_frame_may_exceed_every_buffer():
    frame = delta("🦕" * 1_000_000)
    async with frame_reader(messages.FROM_WORKER) as (reader, peer):
        received, _ = await asyncio.gather(reader.read(), send(peer, framing.encode([frame])))
        assert received == frame


def test_a_frame_is_its_lengths_and_its_json():
    assert framing.encode([messages.Shutdown(), messages.Cancel(id=7)]) == (
        b'\x00\x00\x00\x13\x00\x00\x00\x00{"type":"shutdown"}\x00\x00\x00\x18\x00\x00\x00\x00{"type":"cancel","id":7}'
    )


def test_no_frames_encode_to_no_bytes():
    assert framing.encode([]) == b""


# Blobs


REQUEST = generate(1, CHAT)
BLOBS = [b"\x89PNG", b"", bytes(range(256)) * 4096]


async def test_blobs_arrive_with_their_frame_between_other_frames():
    cancel = messages.Cancel(id=1)
    data = framing.encode([cancel]) + framing.encode_with_blobs(REQUEST, BLOBS) + framing.encode([cancel])
    async with frame_reader(messages.TO_WORKER) as (reader, peer):
        sending = asyncio.create_task(send(peer, data))
        received = [await reader.receive() for _ in range(3)]
        await sending

    assert [cancel, REQUEST, cancel] == [one.frame for one in received]
    assert [[], BLOBS, []] == [list(one.blobs) for one in received]


def test_a_frame_with_blobs_decodes_only_once_it_is_complete():
    data = framing.encode_with_blobs(REQUEST, [b"abc", b"d"])
    frames = framing.FrameDecoder(messages.TO_WORKER)
    for byte in data[:-1]:
        frames.feed(bytes([byte]))
        assert frames.next() is None

    frames.feed(data[-1:])

    assert framing.FrameWithBlobs(REQUEST, [b"abc", b"d"]) == frames.next()
    assert frames.next() is None


async def test_blobs_are_an_error_where_none_are_expected():
    async with frame_reader(messages.TO_WORKER) as (reader, peer):
        await send(peer, framing.encode_with_blobs(REQUEST, [b"abc"]))
        with pytest.raises(framing.FrameError, match="1 blobs; expected none"):
            await reader.read()


def test_more_blobs_than_a_frame_can_carry_are_not_sent(monkeypatch):
    with pytest.raises(ValueError, match="cannot carry"):
        framing.encode_with_blobs(REQUEST, [b""] * (framing.MAX_BLOBS + 1))
    monkeypatch.setattr(framing, "MAX_BLOB_BYTES", 3)
    with pytest.raises(ValueError, match="cannot carry 2 blobs with 4 bytes"):
        framing.encode_with_blobs(REQUEST, [b"ab", b"cd"])


# End of file


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\x00", id="half a length"),
        pytest.param(prefix(100), id="lengths only"),
        pytest.param(prefix(100) + b'{"type":', id="half a header"),
        pytest.param(prefix(19, 5) + b'{"type":"shutdown"}ab', id="half a blob"),
    ],
)
async def test_end_of_file_within_a_frame_is_the_end(sent):
    async with frame_reader(messages.FROM_WORKER) as (reader, peer):
        await send(peer, framing.encode([messages.Hello(version="1")]) + sent)
        peer.close()
        assert await reader.read() == messages.Hello(version="1")
        assert await reader.read() is None
        assert await reader.read() is None


async def test_a_connection_reset_is_the_end():
    ours, theirs = socket.socketpair()
    stream, writer = await framing.connect(ours.detach())
    writer.write(framing.encode([messages.Shutdown()]))
    await writer.drain()
    theirs.close()  # unread data turns this into a reset
    assert await framing.FrameReader(stream, messages.FROM_WORKER).read() is None
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


# Invalid data


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b'{"type":"hello","version":"1"', id="truncated JSON"),
        pytest.param(b'{"type":"hello","version":"1"}x', id="trailing data"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no type"),
        pytest.param(b'{"type":"bonjour"}', id="unknown type"),
        pytest.param(b'{"type":1}', id="wrong type of type"),
        pytest.param(b'{"type":"hello"}', id="missing field"),
        pytest.param(b'{"type":"hello","version":1}', id="wrong type of field"),
        pytest.param(b'{"type":"failed","id":1,"code":"whatever","message":""}', id="unknown code"),
        pytest.param(b'{"type":"output","id":1,"event":{"type":"finished","reason":"tired"}}', id="unknown reason"),
        pytest.param(b'{"type":"output","id":1,"event":{"type":"hello"}}', id="unknown event"),
        pytest.param(b'{"type":"hello","version":"\xff"}', id="not UTF-8"),
        pytest.param(b'{"type":"hello","version":"\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"x":' * 100_000, id="nested too deeply"),
    ],
)
async def test_an_invalid_header_is_a_frame_error(header):
    async with frame_reader(messages.FROM_WORKER) as (reader, peer):
        sending = asyncio.create_task(send(peer, with_prefix(header)))
        with pytest.raises(framing.FrameError):
            await reader.read()
        await sending


@pytest.mark.parametrize(("foreign", "decoder"), [(FROM_WORKER, messages.TO_WORKER), (TO_WORKER, messages.FROM_WORKER)])
def test_a_message_of_the_other_direction_is_a_frame_error(foreign, decoder):
    for frame in foreign:
        if isinstance(frame, messages.Plan):
            continue  # in both directions
        frames = framing.FrameDecoder(decoder)
        frames.feed(framing.encode([frame]))
        with pytest.raises(framing.FrameError):
            frames.next()


@pytest.mark.parametrize(
    ("data", "number"),
    [
        pytest.param(prefix(framing.MAX_HEADER_BYTES + 1), framing.MAX_HEADER_BYTES + 1, id="header"),
        pytest.param(prefix(2**32 - 1), 2**32 - 1, id="largest header"),
        pytest.param(b"HTTP/1.1 400", int.from_bytes(b"HTTP"), id="another protocol"),
        pytest.param(struct.pack(">II", 10, framing.MAX_BLOBS + 1), framing.MAX_BLOBS + 1, id="blob count"),
        pytest.param(prefix(10, *[2**31] * 4), 2**33, id="blob bytes"),
    ],
)
def test_lengths_over_the_limits_are_frame_errors_at_once(data, number):
    frames = framing.FrameDecoder(messages.FROM_WORKER)
    frames.feed(data)

    with pytest.raises(framing.FrameError, match=str(number)):
        frames.next()


def test_a_header_at_the_limit_is_accepted(monkeypatch):
    data = framing.encode([messages.Hello(version="1")])
    frames = framing.FrameDecoder(messages.FROM_WORKER)
    monkeypatch.setattr(framing, "MAX_HEADER_BYTES", len(data) - 8)
    frames.feed(data)
    assert frames.next_frame() == messages.Hello(version="1")

    monkeypatch.setattr(framing, "MAX_HEADER_BYTES", len(data) - 9)
    frames.feed(data)
    with pytest.raises(framing.FrameError):
        frames.next_frame()


# Plans, which daemons pass on


def plan_frame(number, blob=None):
    plan = messages.Plan(number=number, operations=msgspec.Raw(b"[]"))
    return framing.encode([plan if blob is None else framing.FrameWithBlobs(plan, [blob])])


OTHERS = [messages.Pulse(progress=1), messages.Stats(active_bytes=1, cache_bytes=2)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_plans_are_diverted_whole_and_the_rest_stays_in_order(size):
    plans = [plan_frame(1), plan_frame(2, b"tokens"), plan_frame(3)]
    data = b"".join([plans[0], framing.encode(OTHERS[:1]), *plans[1:], framing.encode(OTHERS[1:])])
    diverted = []
    diverter = framing.PlanDiverter(diverted.append)

    rest = b"".join(diverter(data[start : start + size]) for start in range(0, len(data), size))

    assert plans == diverted
    assert framing.encode(OTHERS) == rest


def test_a_diverter_rejects_bytes_that_are_no_frames():
    with pytest.raises(framing.FrameError):
        framing.PlanDiverter(lambda _: None)(b"\xff" * 16)


def test_plans_of_a_message_are_counted():
    assert framing.count_plans(plan_frame(1) + plan_frame(2, b"tokens")) == 2


@pytest.mark.parametrize(
    "data",
    [
        plan_frame(1)[:-1],
        plan_frame(1) + b"\0",
        framing.encode([messages.Load(path="/etc")]),
        plan_frame(1) + framing.encode([messages.Shutdown()]),
        b"\xff" * 16,
    ],
    ids=["incomplete", "trailing", "load", "shutdown", "garbage"],
)
def test_a_message_may_contain_only_plans(data):
    with pytest.raises(framing.FrameError):
        framing.count_plans(data)
