"""Slow, silent, many and vanishing clients: each ends by itself, and costs the others nothing."""

import asyncio
import contextlib
import gc
import socket
import struct

import pytest
from aiohttp import web

from osaurusd.config import Config, Limits
from osaurusd.http import sse
from osaurusd.http.app import make_app

from .serve import parsed, serving

pytestmark = pytest.mark.timeout(60)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
SOON, LATER = 0.1, 600.0
LARGE = 24 * 1024 * 1024


class Handlers:
    """What the server under test does, and what has happened to it."""

    def __init__(self):
        self.begun = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()

    async def hello(self, request):
        return web.Response(text="hello")

    async def wait(self, request):
        self.begun.release()
        await self.go_on.wait()
        return web.Response(text="waited")

    async def read(self, request):
        return web.Response(body=await request.read())

    async def large(self, request):
        return web.Response(body=bytes(LARGE))

    async def stream(self, request):
        return await sse.stream(request, self._endless())

    async def _endless(self):
        try:
            while True:
                yield b"x" * 10_000
                await asyncio.sleep(0)
        finally:
            self.ended.set()


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def serve(logged, handlers):
    """Starts a server with these limits."""

    @contextlib.asynccontextmanager
    async def serve(**limits):
        app = make_app(Config(limits=Limits(**limits)))
        app.router.add_get("/", handlers.hello)
        app.router.add_get("/wait", handlers.wait)
        app.router.add_get("/large", handlers.large)
        app.router.add_get("/stream", handlers.stream)
        app.router.add_post("/", handlers.read)
        async with serving(app) as server:
            yield server

    return serve


@contextlib.asynccontextmanager
async def connected(server, data=b""):
    """Streams to the server, over which this has been sent."""
    reader, writer = await server.connect()
    try:
        writer.write(data)
        await writer.drain()
        yield reader, writer
    finally:
        writer.transport.abort()


async def end_of(reader):
    """All that comes until the server closes."""
    async with asyncio.timeout(20):
        return await reader.read()


def events(lines, event):
    return [line for line in lines if line["event"] == event]


# Heads.


@pytest.mark.parametrize("data", [b"G", GET[:20], GET, b"\r\n", GET + b"X: y"], ids=range(5))
async def test_a_head_that_does_not_come_to_an_end_is_a_408(serve, logged, data):
    async with serve(header_seconds=SOON) as server, connected(server, data) as (reader, _):
        answer = parsed(await end_of(reader))
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert "`limits.header_seconds`" in answer.error["message"]
    (line,) = events(logged(), "refused")
    assert (line["level"], line["status"]) == ("info", 408)


async def test_a_head_that_trickles_is_none_the_better_for_it(serve):
    async with serve(header_seconds=SOON) as server, connected(server, GET + b"X: ") as (reader, writer):
        ending = asyncio.create_task(end_of(reader))
        while not ending.done():
            writer.write(b"y")
            await asyncio.sleep(0.02)
        assert parsed(ending.result()).status == 408


async def test_half_a_head_waits_for_the_answer_before_it(serve, handlers):
    first = GET.replace(b"/ ", b"/wait ")
    async with serve(header_seconds=SOON) as server, connected(server, first + b"\r\n" + GET) as (reader, _):
        await handlers.begun.acquire()
        await asyncio.sleep(3 * SOON)
        handlers.go_on.set()
        answer = parsed(await end_of(reader))
    assert (answer.status, answer.body[:15]) == (200, b"waitedHTTP/1.1 ")
    assert parsed(answer.body[6:]).status == 408


async def test_who_says_nothing_is_hung_up_on_without_a_word(serve):
    async with serve(idle_seconds=SOON, header_seconds=LATER) as server, connected(server) as (reader, _):
        assert await end_of(reader) == b""


async def test_who_has_nothing_more_to_say_is_hung_up_on(serve):
    async with serve(idle_seconds=SOON) as server, connected(server, GET + b"\r\n") as (reader, _):
        assert parsed(await end_of(reader)).body == b"hello"


# Bodies.


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\na\r\n"])
async def test_a_body_that_stops_coming_is_a_408(serve, framing):
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + framing + b"12345"
    async with serve(body_stall_seconds=SOON) as server, connected(server, request) as (reader, _):
        answer = parsed(await end_of(reader))
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert "`limits.body_stall_seconds`" in answer.error["message"]


async def test_a_body_that_trickles_is_a_408_in_the_end(serve):
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    async with serve(body_seconds=3 * SOON) as server, connected(server, request) as (reader, writer):
        ending = asyncio.create_task(end_of(reader))
        while not ending.done():
            writer.write(b"y")
            await asyncio.sleep(0.02)
        answer = parsed(ending.result())
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert "`limits.body_seconds`" in answer.error["message"]


async def test_an_answer_that_does_not_need_the_body_does_not_wait_for_it(serve):
    request = b"POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n12345"
    async with serve() as server, connected(server, request) as (reader, _):
        answer = parsed(await end_of(reader))
    assert (answer.status, answer.headers["Connection"]) == (404, "close")


async def test_an_answer_is_heard_also_by_who_is_still_sending(serve):
    """A socket that is closed with unread bytes in it would reset the connection instead."""
    request = b"POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n"
    async with serve() as server, connected(server, request) as (reader, writer):
        for _ in range(40):
            writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert parsed(await end_of(reader)).status == 404


# Readers.


async def test_a_stream_that_is_not_read_ends(serve, logged, handlers):
    request = GET.replace(b"/ ", b"/stream ") + b"\r\n"
    async with serve(reader_stall_seconds=SOON) as server, connected(server, request) as (reader, _):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with asyncio.timeout(20):
            await handlers.ended.wait()
        assert (await server.ask()).body == b"hello"
    lines = logged()
    (line,) = events(lines, "dropped a client that does not read")
    assert (line["level"], line["unsent_bytes"] > 0) == ("info", True)
    assert [line["status"] for line in events(lines, "request")] == ["gone", 200]
    assert events(lines, "unexpected error") == []


@pytest.mark.parametrize("after", [b"\r\n", b"Connection: close\r\n\r\n"])
async def test_a_large_answer_that_is_not_read_ends(serve, logged, after):
    request = GET.replace(b"/ ", b"/large ") + after
    async with serve(reader_stall_seconds=SOON) as server, connected(server, request) as (reader, _):
        with contextlib.suppress(ConnectionError):
            # The client's own end stops reading at its buffer's size: what it does not take stays with the server.
            reader._transport.pause_reading()
            await gone(server)
        assert (await server.ask()).body == b"hello"
    assert len(events(logged(), "dropped a client that does not read")) == 1


async def test_a_reader_that_takes_its_time_gets_everything(serve):
    request = GET.replace(b"/ ", b"/large ") + b"Connection: close\r\n\r\n"
    async with serve(reader_stall_seconds=20) as server, connected(server, request) as (reader, _):
        await asyncio.sleep(0.2)
        assert len(parsed(await end_of(reader)).body) == LARGE


# Many.


async def test_who_is_one_too_many_is_told_so(serve, handlers, logged):
    wait = GET.replace(b"/ ", b"/wait ") + b"Connection: close\r\n\r\n"
    async with serve(max_connections=2) as server:
        async with connected(server, wait) as (first, _), connected(server, wait) as (second, _):
            await handlers.begun.acquire()
            await handlers.begun.acquire()
            refused = await server.ask()
            handlers.go_on.set()
            served = [parsed(await end_of(reader)).body for reader in (first, second)]
        again = await server.ask()
    assert (refused.status, refused.error["code"]) == (503, "too_many_connections")
    assert refused.headers["Retry-After"] == "1"
    assert served == [b"waited", b"waited"]
    assert again.status == 200
    assert [line["code"] for line in events(logged(), "refused")] == ["too_many_connections"]


async def test_who_has_been_idle_longest_makes_room(serve):
    async with serve(max_connections=2) as server, connected(server, GET + b"\r\n") as (first, _):
        await first.readuntil(b"hello")
        async with connected(server, GET + b"\r\n") as (second, other):
            await second.readuntil(b"hello")
            assert (await server.ask()).body == b"hello"
            assert await end_of(first) == b""
            other.write(GET + b"\r\n")
            assert (await second.readline()).startswith(b"HTTP/1.1 200")


async def test_a_crowd_of_the_idle_keeps_nobody_out(serve):
    async with serve(max_connections=20) as server, contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connected(server))
        assert (await server.ask()).body == b"hello"
        assert len(server.connections()) <= 21


async def test_a_crowd_that_is_turned_away_leaves_nothing(serve, handlers):
    async with serve(max_connections=1) as server:
        async with connected(server, GET.replace(b"/ ", b"/wait ") + b"\r\n"):
            await handlers.begun.acquire()
            answers = await asyncio.gather(*(server.send(b"") for _ in range(100)), return_exceptions=True)
            told = [answer for answer in answers if not isinstance(answer, Exception)]
            assert {answer.status for answer in told} == {503}
            assert len(told) >= 32
        await gone(server)
        assert (await server.ask()).status == 200


# Failures where answers are made.


@pytest.fixture
async def failing(logged):
    """A server whose answers fail at the place that the path names."""
    app = make_app(Config())

    @web.middleware
    async def outermost(request, handler):
        if request.path == "/middleware":
            raise ValueError("a secret")
        return await handler(request)

    async def signal(request, response):
        if request.path == "/signal":
            raise ValueError("a secret")

    async def nothing(request):
        return None

    async def begun(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"beginning")
        raise ValueError("a secret")

    app.middlewares.insert(0, outermost)
    app.on_response_prepare.append(signal)
    app.router.add_get("/nothing", nothing)
    app.router.add_get("/begun", begun)
    async with serving(app) as server:
        yield server


@pytest.mark.parametrize("path", ["/middleware", "/signal", "/nothing"])
async def test_whatever_fails_is_a_500_that_is_logged_once(failing, logged, path):
    answer = await failing.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert (await failing.ask("GET", "/none")).status == 404
    assert len([line for line in logged() if line["level"] == "error"]) == 1


async def test_an_answer_that_fails_midway_is_cut_off(failing, logged):
    answer = await failing.ask("GET", "/begun")
    assert answer.body == b"9\r\nbeginning\r\n"
    (line,) = [line for line in logged() if line["level"] == "error"]
    assert "ValueError" in line["exception"]


# Leaving.


async def gone(server):
    async with asyncio.timeout(20):
        while server.connections():  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.01)


MOMENTS = [
    b"",
    b"GET",
    b"garbage\r\n\r\n",
    GET + b"\r\n",
    GET + b"\r\n" + GET,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    b"POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    GET.replace(b"/ ", b"/wait ") + b"\r\n",
    GET.replace(b"/ ", b"/stream ") + b"\r\n",
    GET.replace(b"/ ", b"/large ") + b"\r\n",
]

# struct linger: on, and no time: a reset instead of an end.
RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("how", ["reset", "close", "half"])
async def test_who_leaves_at_any_moment_leaves_nothing_behind(serve, logged, how):
    async with serve() as server:
        before = asyncio.all_tasks()
        for data in MOMENTS:
            async with connected(server, data) as (_, writer):
                await asyncio.sleep(0.01)
                if how == "reset":
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                elif how == "half":
                    writer.write_eof()
                    await asyncio.sleep(0.01)
        await gone(server)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        gc.collect()
    assert [line for line in logged() if line["level"] not in ("debug", "info")] == []


async def test_shutting_down_does_not_wait_for_who_is_just_leaving(serve):
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
        async with serve() as server:
            reader, _ = await stack.enter_async_context(connected(server, b"garbage\r\n\r\n"))
            await reader.readuntil(b"}}")
        assert server.connections() == []
