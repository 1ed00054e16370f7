import asyncio
import contextlib
import itertools
import socket
import threading
from concurrent.futures import Future

import msgspec
import pytest

import osaurusd
from osaurusd.inference.events import Completed, Delta, Started, Usage
from osaurusd.inference.request import ChatPrompt, GenerationRequest, Message, SamplingParams, TextPrompt, TokenPrompt
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker import session as session_module
from osaurusd.worker.engine.engine import Engine
from osaurusd.worker.outbox import Outbox
from osaurusd.worker.runners.request_builder import RequestBuilder
from osaurusd.worker.session import Session

SAMPLING = SamplingParams(temperature=0)
SECONDS = 120


@pytest.fixture(autouse=True)
def threads_that_end(monkeypatch, mlx_thread):
    monkeypatch.setattr(session_module, "MlxThread", mlx_thread)


def generate(id_, text="hi", max_tokens=5, prompt=None):
    prompt = prompt or ChatPrompt(messages=[Message.from_text("user", text)])
    return messages.Generate(id=id_, request=GenerationRequest(prompt=prompt, sampling=SAMPLING, max_tokens=max_tokens))


def is_completed(frame):
    return isinstance(frame, messages.Output) and isinstance(frame.event, Completed)


def is_delta(frame):
    return isinstance(frame, messages.Output) and isinstance(frame.event, Delta)


async def close_all(writers):
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_frame(frames):
    """Read the next frame that is not a pulse."""
    while isinstance(frame := await frames.read(), messages.Pulse):
        pass
    return frame


async def read_pulse(frames, matches):
    """Read pulses until one matches."""
    while not (isinstance(frame := await frames.read(), messages.Pulse) and matches(frame)):
        pass
    return frame


async def read_until_completed(frames, id_):
    """Read frames up to the end of this request."""
    seen = []
    while not (seen and isinstance(seen[-1], messages.Output) and is_completed(seen[-1]) and seen[-1].id == id_):
        seen.append(await read_frame(frames))
    return seen


class ImmediateExecutor:
    """An executor that runs its work at once, so that the loop's iterations can be counted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, work, *arguments):
        future = Future()
        future.set_result(work(*arguments))
        return future


@contextlib.asynccontextmanager
async def running_session(folder):
    """Run a session in this process with a model loaded: a function that sends to it, and a reader of its frames."""
    ours, theirs = socket.socketpair()
    reader, ours_writer = await framing.connect(ours.detach())
    outbox = Outbox(theirs.fileno(), asyncio.get_running_loop())
    incoming = asyncio.StreamReader()
    frames = framing.FrameReader(reader, messages.FROM_WORKER)
    running = asyncio.create_task(Session(framing.FrameReader(incoming, messages.TO_WORKER), outbox).run())

    def send(*sent):
        incoming.feed_data(framing.encode(sent))

    async with asyncio.timeout(SECONDS):
        assert messages.Hello(version=osaurusd.__version__) == await read_frame(frames)
        send(messages.Load(path=str(folder), context_length=2048))
        assert isinstance(await read_frame(frames), messages.Loaded)
        assert isinstance(await read_frame(frames), messages.Stats)
        yield send, frames
        send(messages.Shutdown())  # in whatever state the session is
        await running
    outbox.close()
    theirs.close()
    await close_all([ours_writer])


@pytest.fixture
async def session(monkeypatch, tiny_folder):
    monkeypatch.setattr(session_module, "ThreadPoolExecutor", ImmediateExecutor)
    async with running_session(tiny_folder) as running:
        yield running


async def test_a_cancel_takes_effect_at_any_iteration_of_the_loop(session):
    send, frames = session
    ids = itertools.count(1)
    for late in range(8):
        cancelled, other, last = next(ids), next(ids), next(ids)
        send(generate(cancelled, max_tokens=1500))
        for _ in range(late):
            await asyncio.sleep(0)

        send(messages.Cancel(id=cancelled), generate(other, max_tokens=3))

        await read_until_completed(frames, other)
        # No output of the cancelled request follows: a third request runs alone.
        send(generate(last, max_tokens=10))
        seen = await read_until_completed(frames, last)
        assert {last} == {frame.id for frame in seen if not isinstance(frame, messages.Stats)}, late


async def test_images_do_not_delay_requests_without_any(tiny_folder, monkeypatch):
    build, processed = RequestBuilder.build, threading.Event()

    def build_slowly(builder, frame, blobs):
        if blobs:
            assert processed.wait(SECONDS)
        return build(builder, frame, blobs)

    monkeypatch.setattr(RequestBuilder, "build", build_slowly)
    async with running_session(tiny_folder) as (send, frames):
        send(*(framing.FrameWithBlobs(generate(id_), [b"image"]) for id_ in range(1, 5)), generate(5))
        assert {5} == {frame.id for frame in await read_until_completed(frames, 5)}

        processed.set()
        completed = set()
        while len(completed) < 4:
            if is_completed(frame := await read_frame(frames)):
                completed.add(frame.id)
        assert {1, 2, 3, 4} == completed


async def test_prompt_is_counted_without_the_engine(session):
    send, frames = session
    send(generate(1, max_tokens=1))
    (started,) = [
        frame.event
        for frame in await read_until_completed(frames, 1)
        if isinstance(frame, messages.Output) and isinstance(frame.event, Started)
    ]
    counted = generate(2)
    send(msgspec.structs.replace(counted, request=msgspec.structs.replace(counted.request, count_only=True)))
    events = [frame.event for frame in await read_until_completed(frames, 2) if isinstance(frame, messages.Output)]
    tokens = started.prompt_tokens
    assert events == [Started(prompt_tokens=tokens), Completed(usage=Usage())]


async def test_caches_are_dropped_while_requests_run(session):
    send, frames = session
    send(messages.Limits(prefix_cache_bytes=10**8), generate(1, text="word " * 300))
    stats = [frame for frame in await read_until_completed(frames, 1) if isinstance(frame, messages.Stats)]
    stats.append(await read_frame(frames))
    assert stats[-1].prefix_cache_bytes > 0

    send(generate(2, max_tokens=1500), messages.DropCaches())
    while not (isinstance(frame := await read_frame(frames), messages.Stats) and frame.prefix_cache_bytes == 0):
        pass
    send(messages.Cancel(id=2), generate(3))
    await read_until_completed(frames, 3)


async def test_a_pulse_reports_the_reservation_of_a_cancelled_request_as_released(tiny_folder, monkeypatch):
    monkeypatch.setattr(session_module, "PULSE_SECONDS", 0.02)
    async with running_session(tiny_folder) as (send, frames):
        # No progress since the last pulse.
        monkeypatch.setattr(Engine, "progress", property(lambda _: 1, lambda *_: None), raising=False)
        send(generate(1))
        await read_until_completed(frames, 1)
        idle = await read_frame(frames)
        send(generate(2, max_tokens=1500))
        await read_pulse(frames, lambda pulse: pulse.reserved_bytes > idle.reserved_bytes)

        send(messages.Cancel(id=2))

        await read_pulse(frames, lambda pulse: pulse.reserved_bytes == idle.reserved_bytes)


class Panic(BaseException):
    """Stands for a panic of a Rust extension."""


async def test_a_panic_while_preparing_fails_only_its_request(session, monkeypatch):
    send, frames = session
    build = RequestBuilder.build

    def panic(builder, frame, blobs):
        if frame.id == 1:
            raise Panic("index out of bounds")
        return build(builder, frame, blobs)

    monkeypatch.setattr(RequestBuilder, "build", panic)
    send(generate(1), generate(2))

    failed = await read_frame(frames)
    assert (1, ErrorCode.INVALID_REQUEST) == (failed.id, failed.code)
    assert "Panic: index out of bounds" in failed.message
    await read_until_completed(frames, 2)


async def test_a_shutdown_during_generation_takes_effect(session):
    send, frames = session
    send(generate(1, max_tokens=1500))

    assert 1 == (await read_frame(frames)).id  # the fixture sends Shutdown


async def test_concurrent_requests_have_independent_outputs(session):
    send, frames = session
    send(generate(1, "hi", 12), generate(2, "tell me more", 3), generate(3, "hi", 12))

    seen = []
    while {1, 2, 3} != {frame.id for frame in seen if is_completed(frame)}:
        seen.append(await read_frame(frames))

    texts = ["".join(frame.event.text for frame in seen if is_delta(frame) and frame.id == id_) for id_ in (1, 3)]
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    ("prompt", "code", "location"),
    [
        (TokenPrompt(tokens=[]), ErrorCode.INVALID_REQUEST, ("prompt",)),
        (TokenPrompt(tokens=[2**40]), ErrorCode.INVALID_REQUEST, ("prompt", "tokens")),
        (TextPrompt(text="word " * 3000), ErrorCode.CONTEXT_LENGTH_EXCEEDED, ("prompt",)),
    ],
)
async def test_an_unusable_prompt_fails_only_its_request(session, prompt, code, location):
    send, frames = session
    send(generate(1, prompt=prompt), generate(2))

    seen = await read_until_completed(frames, 2)

    (failed,) = [frame for frame in seen if isinstance(frame, messages.Failed)]
    assert (1, code, location) == (failed.id, failed.code, failed.location)


async def test_a_failed_load_is_reported_and_the_model_stays_loaded(session, tmp_path):
    send, frames = session

    send(messages.Load(path=str(tmp_path)), generate(1))

    seen = await read_until_completed(frames, 1)
    assert isinstance(seen[0], messages.LoadFailed)


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\4junk", b"\0\0\0\xffhalf a frame"])
async def test_the_session_ends_with_its_connection(monkeypatch, sent):
    opened = []

    async def connect(fd, connect=framing.connect):
        streams = await connect(fd)
        opened.append(streams[1])
        return streams

    monkeypatch.setattr(framing, "connect", connect)
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(session_module.serve(theirs.detach()))
    reader, writer = await framing.connect(ours.detach())
    assert (
        messages.Hello(version=osaurusd.__version__) == await framing.FrameReader(reader, messages.FROM_WORKER).read()
    )

    writer.write(sent)
    writer.close()

    assert await asyncio.wait_for(serving, SECONDS) is None
    await close_all(opened)  # a worker process would close it by exiting
