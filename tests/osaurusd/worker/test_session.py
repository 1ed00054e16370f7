import asyncio
import contextlib
import itertools
import socket
from concurrent.futures import Future

import pytest

import osaurusd
from osaurusd.inference.events import Completed, Delta
from osaurusd.inference.request import ChatPrompt, Message, SamplingParams, TextPrompt, TokenPrompt
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker import session as session_module
from osaurusd.worker.engine.engine import Engine
from osaurusd.worker.frontend.prepare import Preparer
from osaurusd.worker.outbox import Outbox
from osaurusd.worker.session import Session

SAMPLING = SamplingParams(temperature=0)
SECONDS = 30


@pytest.fixture(autouse=True)
def threads_that_end(monkeypatch, mlx_thread):
    monkeypatch.setattr(session_module, "MlxThread", mlx_thread)


def order(id_, text="hi", max_tokens=5):
    prompt = ChatPrompt(messages=[Message(role="user", content=text)])
    return messages.Generate(id=id_, prompt=prompt, sampling=SAMPLING, max_tokens=max_tokens)


async def close_all(writers):
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def next_of(frames):
    """The next frame that is no pulse."""
    while isinstance(frame := await frames.read(), messages.Pulse):
        pass
    return frame


async def pulse(frames, wanted):
    """The next pulse that is as wanted."""
    while not (isinstance(frame := await frames.read(), messages.Pulse) and wanted(frame)):
        pass
    return frame


async def until_done(frames, id_):
    """All frames up to the end of this request."""
    seen = []
    while not (seen and isinstance(seen[-1], Completed) and seen[-1].id == id_):
        seen.append(await next_of(frames))
    return seen


class AtOnce:
    """An executor without threads: what it is given is done by the time it has it, so that turns can be counted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, work, *arguments):
        future = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture
async def talk(monkeypatch, tiny_folder):
    """A session in this process that has loaded the tiny model: what feeds it, and what reads its frames."""
    monkeypatch.setattr(session_module, "ThreadPoolExecutor", AtOnce)
    ours, theirs = socket.socketpair()
    reader, ours_writer = await framing.connect(ours.detach())
    outbox = Outbox(theirs.fileno(), asyncio.get_running_loop())
    orders = asyncio.StreamReader()
    frames = framing.FrameReader(reader, messages.FROM_WORKER)
    running = asyncio.create_task(Session(framing.FrameReader(orders, messages.TO_WORKER), outbox).run())

    def send(*sent):
        orders.feed_data(framing.encode(sent))

    async with asyncio.timeout(SECONDS):
        assert messages.Hello(version=osaurusd.__version__) == await next_of(frames)
        send(messages.Load(path=str(tiny_folder), context_length=2048))
        assert isinstance(await next_of(frames), messages.Loaded)
        assert isinstance(await next_of(frames), messages.Stats)
        yield send, frames
        send(messages.Shutdown())  # it must hear this whatever it is doing
        await running
    outbox.close()
    theirs.close()
    await close_all([ours_writer])


async def test_a_cancel_is_obeyed_in_whatever_turn_it_comes(talk):
    send, frames = talk
    ids = itertools.count(1)
    for late in range(8):
        cancelled, other, last = next(ids), next(ids), next(ids)
        send(order(cancelled, max_tokens=1500))
        for _ in range(late):
            await asyncio.sleep(0)

        send(messages.Cancel(id=cancelled), order(other, max_tokens=3))

        await until_done(frames, other)
        # Nothing of the first follows: a third request runs alone.
        send(order(last, max_tokens=10))
        seen = await until_done(frames, last)
        assert {last} == {frame.id for frame in seen if not isinstance(frame, messages.Stats)}, late


async def test_what_a_cancelled_request_had_reserved_is_told_to_be_free(talk, monkeypatch):
    send, frames = talk
    monkeypatch.setattr(session_module, "PULSE_SECONDS", 0.02)
    # As if nothing had been computed since the last pulse.
    monkeypatch.setattr(Engine, "progress", property(lambda _: 1, lambda *_: None), raising=False)
    send(order(1))
    await until_done(frames, 1)
    idle = await next_of(frames)
    send(order(2, max_tokens=1500))
    await pulse(frames, lambda pulse: pulse.reserved_bytes > idle.reserved_bytes)

    send(messages.Cancel(id=2))

    async with asyncio.timeout(SECONDS):
        await pulse(frames, lambda pulse: pulse.reserved_bytes == idle.reserved_bytes)


class Panic(BaseException):
    """As what extensions that are written in Rust raise."""


async def test_a_panic_over_a_prompt_is_an_error_of_its_request(talk, monkeypatch):
    send, frames = talk
    prepare = Preparer.prepare

    def panic(preparer, order):
        if order.id == 1:
            raise Panic("index out of bounds")
        return prepare(preparer, order)

    monkeypatch.setattr(Preparer, "prepare", panic)
    send(order(1), order(2))

    failed = await next_of(frames)
    assert (1, ErrorCode.INVALID_REQUEST) == (failed.id, failed.code)
    assert "Panic: index out of bounds" in failed.message
    await until_done(frames, 2)


async def test_a_goodbye_is_heard_in_the_middle_of_an_answer(talk):
    send, frames = talk
    send(order(1, max_tokens=1500))

    assert 1 == (await next_of(frames)).id  # the fixture says it


async def test_what_is_asked_at_once_is_answered_each_by_itself(talk):
    send, frames = talk
    send(order(1, "hi", 12), order(2, "tell me more", 3), order(3, "hi", 12))

    seen = []
    while {1, 2, 3} != {frame.id for frame in seen if isinstance(frame, Completed)}:
        seen.append(await next_of(frames))

    texts = ["".join(frame.text for frame in seen if isinstance(frame, Delta) and frame.id == id_) for id_ in (1, 3)]
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (TokenPrompt(tokens=[]), ErrorCode.INVALID_REQUEST, "prompt"),
        (TokenPrompt(tokens=[2**40]), ErrorCode.INVALID_REQUEST, "prompt"),
        (TextPrompt(text="word " * 3000), ErrorCode.CONTEXT_LENGTH_EXCEEDED, "prompt"),
    ],
)
async def test_what_cannot_be_made_into_a_prompt_is_that_requests_fault(talk, prompt, code, param):
    send, frames = talk
    send(messages.Generate(id=1, prompt=prompt, sampling=SAMPLING), order(2))

    seen = await until_done(frames, 2)

    (failed,) = [frame for frame in seen if isinstance(frame, messages.Failed)]
    assert (1, code, param) == (failed.id, failed.code, failed.param)


async def test_a_folder_that_cannot_be_loaded_is_said_and_the_model_stays(talk, tmp_path):
    send, frames = talk

    send(messages.Load(path=str(tmp_path)), order(1))

    seen = await until_done(frames, 1)
    assert isinstance(seen[0], messages.LoadFailed)


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\4junk", b"\0\0\0\xffhalf a frame"])
async def test_it_ends_with_its_daemon(monkeypatch, sent):
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
    await close_all(opened)  # its own end would go with its process
