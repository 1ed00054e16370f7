"""Slow, silent, too many and disconnecting clients do not affect others; half-closed ones get their response."""

import asyncio
import contextlib
import gc
import resource
import socket
import struct

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from osaurusd.config import Config, Limits
from osaurusd.http import connection, half_close, server
from osaurusd.http.connection import ConnectionGuard, WriteTimeout
from osaurusd.http.errors import error_response
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.request import read_body
from osaurusd.http.server import HttpServer
from osaurusd.http.streaming import stream_sse

from .serve import build_app, connected, parse_response, serving

pytestmark = pytest.mark.timeout(120)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
SHORT, LONG = 0.1, 600.0
LARGE = 24 * 1024 * 1024


class Handlers:
    """Handlers whose progress a test controls and observes."""

    def __init__(self):
        self.started = asyncio.Semaphore(0)
        self.resume = asyncio.Event()
        self.closed = asyncio.Event()

    async def hello(self, request):
        return web.Response(text="hello")

    async def wait(self, request):
        self.started.release()
        await self.resume.wait()
        return web.Response(text="waited")

    async def read(self, request):
        return web.Response(body=bytes(await read_body(request)))

    async def large(self, request):
        self.started.release()
        return web.Response(body=bytes(LARGE))

    async def stream(self, request):
        return await stream_sse(request, self._endless(), error_event=lambda error: b"")

    async def _endless(self):
        try:
            while True:
                yield b"x" * 10_000
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    @property
    def routes(self):
        return [
            ("GET", "/", self.hello),
            ("POST", "/", self.read),
            ("GET", "/wait", self.wait),
            ("GET", "/large", self.large),
            ("GET", "/stream", self.stream),
        ]


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def serve(logged, handlers):
    """Starts a server with these limits."""

    @contextlib.asynccontextmanager
    async def serve(**limits):
        config = Config(limits=Limits(**limits))
        async with serving(build_app(*handlers.routes, config=config), config) as server:
            yield server

    return serve


async def turns():
    """Let the server receive and process what has been sent."""
    for _ in range(50):
        await asyncio.sleep(0)


async def read_all(reader):
    async with asyncio.timeout(60):
        return await reader.read()


def lines_of(lines, event):
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("data", [b"G", GET[:20], GET, b"\r\n", GET + b"X: y"], ids=range(5))
async def test_incomplete_head_is_a_408(serve, logged, data):
    async with serve(header_seconds=SHORT) as server, connected(server, data) as (reader, _):
        response = parse_response(await read_all(reader))
    assert (response.status, response.error["code"]) == (408, "request_timeout")
    assert "`limits.header_seconds`" in response.error["message"]
    (line,) = lines_of(logged(), "connection rejected")
    assert (line["level"], line["status"]) == ("info", 408)


async def test_head_that_arrives_slowly_is_a_408(serve):
    async with serve(header_seconds=SHORT) as server, connected(server, GET + b"X: ") as (reader, writer):
        reading = asyncio.create_task(read_all(reader))
        while not reading.done():
            writer.write(b"y")
            await asyncio.sleep(0.02)
        assert parse_response(reading.result()).status == 408


async def test_head_after_a_request_is_limited_too(serve):
    async with serve(header_seconds=SHORT) as server, connected(server, GET + b"\r\n") as (reader, writer):
        await reader.readuntil(b"hello")
        writer.write(GET)
        assert parse_response(await read_all(reader)).status == 408


async def test_rejections_before_a_request_are_counted(logged):
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    config = Config(limits=Limits(header_seconds=SHORT))
    listener = socket.create_server(("127.0.0.1", 0))
    http_server = HttpServer(build_app(config=config), lambda: config, error_response, metrics)
    await http_server.start([listener])
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"G")
    assert parse_response(await read_all(reader)).status == 408
    writer.close()
    await http_server.close()
    labels = {"endpoint": "other", "status": "408"}
    assert registry.get_sample_value("osaurus_http_requests_total", labels) == 1


async def test_idle_connection_is_closed_silently(serve):
    async with serve(idle_seconds=SHORT, header_seconds=LONG) as server, connected(server) as (reader, _):
        assert await read_all(reader) == b""


async def test_connection_is_idle_after_its_last_response(serve, loop_clock):
    async with serve(idle_seconds=SHORT) as server, connected(server, GET + b"\r\n") as (reader, _):
        await reader.readuntil(b"hello")
        loop_clock.advance(SHORT)
        assert await reader.read() == b""


async def test_connection_is_not_idle_while_its_request_is_served(serve, handlers, loop_clock):
    request = GET.replace(b"/ ", b"/wait ") + b"\r\n"
    async with serve(idle_seconds=SHORT) as server, connected(server, request) as (reader, _):
        await handlers.started.acquire()
        loop_clock.advance(3 * SHORT)
        await turns()
        handlers.resume.set()
        assert (await reader.readuntil(b"waited")).startswith(b"HTTP/1.1 200")


async def test_connection_is_not_idle_while_its_response_is_sent(serve, loop_clock):
    request = GET.replace(b"/ ", b"/large ") + b"\r\n"
    async with serve(idle_seconds=SHORT) as server, connected(server, request) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        loop_clock.advance(3 * SHORT)
        await turns()
        assert len(await reader.readexactly(LARGE)) == LARGE
        await turns()
        loop_clock.advance(3 * SHORT)
        assert await reader.read() == b""


async def test_changed_limits_apply_to_new_connections(handlers):
    limits = [Limits(header_seconds=LONG)]
    app = build_app(*handlers.routes)
    async with serving(app, lambda: Config(limits=limits[-1])) as server:
        limits.append(Limits(header_seconds=SHORT))
        async with connected(server, GET) as (reader, _):
            assert parse_response(await read_all(reader)).status == 408


async def test_pipelined_requests_are_held_back_while_a_request_is_served(serve, handlers, monkeypatch):
    monkeypatch.setattr(connection, "MAX_PIPELINED_BYTES", 10_000)
    first = GET.replace(b"/ ", b"/wait ") + b"\r\n"
    count = 2_000
    async with serve() as server, connected(server, first) as (reader, writer):
        await handlers.started.acquire()
        writer.write((GET + b"\r\n") * count + GET + b"Connection: close\r\n\r\n")
        await turns()
        handlers.resume.set()
        assert (await read_all(reader)).count(b"hello") == count + 1


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\na\r\n"])
async def test_stalled_body_is_a_408(serve, framing):
    async with serve(body_stall_seconds=SHORT) as server, connected(server, POST + framing + b"12345") as (reader, _):
        response = parse_response(await read_all(reader))
    assert (response.status, response.error["code"]) == (408, "request_timeout")
    assert "`limits.body_stall_seconds`" in response.error["message"]


async def test_body_that_arrives_slowly_is_a_408(serve):
    request = POST + b"Content-Length: 100000\r\n\r\n"
    async with serve(body_seconds=3 * SHORT) as server, connected(server, request) as (reader, writer):
        reading = asyncio.create_task(reader.read(1))
        while not reading.done():
            writer.write(b"y")
            await asyncio.sleep(0.02)
        response = parse_response(reading.result() + await read_all(reader))
    assert "`limits.body_seconds`" in response.error["message"]


async def test_response_does_not_wait_for_an_unneeded_body(serve):
    request = POST.replace(b"/ ", b"/none ") + b"Content-Length: 100000\r\n\r\n12345"
    async with serve(body_stall_seconds=LONG) as server, connected(server, request) as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404")
    assert b"Connection: close" in head


async def test_client_that_is_still_sending_receives_the_response(serve, monkeypatch):
    """Closing a socket that has unread data would reset the connection instead."""
    monkeypatch.setattr("osaurusd.http.server.BODY_LINGER_SECONDS", LONG)
    request = POST.replace(b"/ ", b"/none ") + b"Content-Length: 4000000\r\n\r\n"
    async with serve() as server, connected(server, request) as (reader, writer):
        for _ in range(40):
            writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert parse_response(await read_all(reader)).status == 404


async def test_large_body_is_not_taken_for_a_head(serve):
    body = bytes(1_000_000)
    request = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serve(max_head_bytes=1024) as server, connected(server, request) as (reader, writer):
        for at in range(0, len(body), 50_000):
            writer.write(body[at : at + 50_000])
            await writer.drain()
        assert parse_response(await read_all(reader)).body == body


async def test_stream_that_is_not_read_is_aborted(serve, logged, handlers):
    request = GET.replace(b"/ ", b"/stream ") + b"\r\n"
    async with serve(reader_stall_seconds=SHORT) as server, connected(server, request) as (reader, _):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with asyncio.timeout(60):
            await handlers.closed.wait()
        assert (await server.request()).body == b"hello"
    lines = logged()
    (line,) = lines_of(lines, "client stopped reading; connection aborted")
    assert (line["level"], line["unsent_bytes"] > 0) == ("info", True)
    assert [line["status"] for line in lines_of(lines, "request")] == ["disconnected", 200]
    assert lines_of(lines, "unexpected error") == []


@pytest.mark.parametrize("end", [b"\r\n", b"Connection: close\r\n\r\n"])
async def test_large_response_that_is_not_read_is_aborted(serve, logged, handlers, end):
    async with serve(reader_stall_seconds=SHORT) as server:
        # A plain socket: an asyncio stream would read ahead.
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET.replace(b"/ ", b"/large ") + end)
            await handlers.started.acquire()
            await server.wait_until_unused()
        assert (await server.request()).body == b"hello"
    assert len(lines_of(logged(), "client stopped reading; connection aborted")) == 1


async def test_slow_reader_receives_everything(serve):
    request = GET.replace(b"/ ", b"/large ") + b"Connection: close\r\n\r\n"
    async with serve(reader_stall_seconds=20) as server, connected(server, request) as (reader, _):
        await turns()
        assert len(parse_response(await read_all(reader)).body) == LARGE


class FakeTransport:
    def __init__(self):
        self.unsent = 100
        self.aborted = False

    def get_write_buffer_size(self):
        return self.unsent

    def abort(self):
        self.aborted = True


async def test_write_timeout_is_extended_by_progress_only():
    transport, timeout = FakeTransport(), WriteTimeout(1e-9)
    timeout.start(transport)
    for transport.unsent in (99, 50, 1):
        timeout.check(transport)
        assert not transport.aborted
    transport.unsent = 2
    timeout.check(transport)
    assert transport.aborted


async def test_write_timeout_does_not_abort_early():
    transport, timeout = FakeTransport(), WriteTimeout(600)
    timeout.start(transport)
    timeout.check(transport)
    timeout.cancel()
    assert not transport.aborted


async def test_connections_beyond_the_limit_are_a_503(serve, handlers, logged):
    wait = GET.replace(b"/ ", b"/wait ") + b"Connection: close\r\n\r\n"
    async with serve(max_connections=2) as server:
        async with connected(server, wait) as (first, _), connected(server, wait) as (second, _):
            await handlers.started.acquire()
            await handlers.started.acquire()
            rejected = await server.request()
            handlers.resume.set()
            served = [parse_response(await read_all(reader)).body for reader in (first, second)]
        assert (await server.request()).status == 200
    assert (rejected.status, rejected.error["code"]) == (503, "too_many_connections")
    assert rejected.headers["Retry-After"] == "1"
    assert served == [b"waited", b"waited"]
    assert [line["code"] for line in lines_of(logged(), "connection rejected")] == ["too_many_connections"]


async def test_connection_that_was_idle_longest_makes_room(serve):
    async with serve(max_connections=2) as server, connected(server, GET + b"\r\n") as (first, _):
        await first.readuntil(b"hello")
        async with connected(server, GET + b"\r\n") as (second, writer):
            await second.readuntil(b"hello")
            assert (await server.request()).body == b"hello"
            assert await read_all(first) == b""
            writer.write(GET + b"\r\n")
            assert (await second.readline()).startswith(b"HTTP/1.1 200")


async def test_many_idle_connections_do_not_block_clients(serve):
    async with serve(max_connections=20) as server, contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connected(server))
        assert (await server.request()).body == b"hello"
        assert server.connection_count <= 21


async def test_many_rejected_connections_are_released(serve, handlers):
    async with serve(max_connections=1) as server:
        async with connected(server, GET.replace(b"/ ", b"/wait ") + b"\r\n"):
            await handlers.started.acquire()
            results = await asyncio.gather(*(server.send(b"") for _ in range(100)), return_exceptions=True)
            responses = [result for result in results if not isinstance(result, Exception)]
            assert {response.status for response in responses} == {503}
            assert len(responses) >= 32
        await server.wait_until_unused()
        assert (await server.request()).status == 200


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(resource.RLIM_INFINITY, 1000), (8192, 1000), (256, 80), (10, 1)]
)
def test_connections_leave_file_descriptors_for_other_purposes(monkeypatch, descriptors, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, resource.RLIM_INFINITY))
    assert server.max_connections(Limits(max_connections=1000)) == expected


MOMENTS = [
    b"",
    b"GET",
    b"garbage\r\n\r\n",
    GET + b"\r\n",
    GET + b"\r\n" + GET,
    POST + b"Content-Length: 10\r\n\r\n12345",
    POST + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    POST.replace(b"/ ", b"/none ") + b"Content-Length: 10\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    GET.replace(b"/ ", b"/wait ") + b"\r\n",
    GET.replace(b"/ ", b"/stream ") + b"\r\n",
    GET.replace(b"/ ", b"/large ") + b"\r\n",
]

# struct linger: enabled, 0 seconds; closing then resets the connection.
RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_disconnect_at_any_moment_leaves_nothing_behind(serve, logged, how, monkeypatch):
    monkeypatch.setattr(half_close, "MAX_PROBE_SECONDS", 0.1)
    async with serve() as server:
        before = asyncio.all_tasks()
        for data in MOMENTS:
            async with connected(server, data) as (_, writer):
                await asyncio.sleep(0.01)
                if how == "reset":
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                elif how == "half-close":
                    writer.write_eof()
                    await asyncio.sleep(0.01)
        await server.wait_until_unused()
        # A cancelled handler needs a few turns of the event loop to end.
        if ending := asyncio.all_tasks() - before:
            await asyncio.wait(ending, timeout=60)
        assert asyncio.all_tasks() == before
        gc.collect()
    assert [line for line in logged() if line["level"] not in ("debug", "info")] == []


def final_response(data):
    """Parse what arrived, without the interim responses that precede the final one."""
    return parse_response(data.replace(half_close._INTERIM_RESPONSE, b""))


async def half_close_and_read(server, data):
    async with connected(server, data) as (reader, writer):
        writer.write_eof()
        return await read_all(reader)


BODY = b"Content-Length: 5\r\n\r\n12345"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GET + b"\r\n", b"hello"),
        (GET.replace(b"1.1", b"1.0") + b"\r\n", b"hello"),
        (POST + BODY, b"12345"),
        (GET.replace(b"/ ", b"/large ") + b"\r\n", bytes(LARGE)),
    ],
    ids=["get", "HTTP/1.0", "post", "large"],
)
async def test_half_closed_client_receives_the_response(serve, data, expected):
    async with serve() as server:
        response = final_response(await half_close_and_read(server, data))
        assert (response.status, response.body == expected) == (200, True)
        await server.wait_until_unused()


async def test_half_closed_client_waits_for_a_slow_response(serve, handlers, monkeypatch):
    monkeypatch.setattr(half_close, "MAX_PROBE_SECONDS", 0.05)
    request = GET.replace(b"/ ", b"/wait ") + b"\r\n"
    async with serve() as server, connected(server, request) as (reader, writer):
        await handlers.started.acquire()
        writer.write_eof()
        for _ in range(3):
            assert await reader.readuntil(b"\r\n\r\n") == half_close._INTERIM_RESPONSE
        handlers.resume.set()
        assert final_response(await read_all(reader)).body == b"waited"


@pytest.fixture
def slow_between_requests(loop_clock, monkeypatch):
    """The daemon is stopped for a second after each response; the fixture's list of calls runs then."""
    calls, wait_for_head = [], ConnectionGuard._wait_for_head

    def wait(guard):
        wait_for_head(guard)
        loop_clock.advance(1)
        for call in calls:
            call(guard)

    monkeypatch.setattr(ConnectionGuard, "_wait_for_head", wait)
    return calls


async def test_half_closed_client_receives_all_pipelined_responses(serve, slow_between_requests):
    async with serve() as server:
        assert (await half_close_and_read(server, (GET + b"\r\n") * 20)).count(b"hello") == 20


async def test_client_that_closes_its_side_between_pipelined_requests_receives_all_responses(
    serve, slow_between_requests
):
    def close_client_side(guard):
        if not guard.half_closed.is_set() and guard._body is not None:
            assert guard.eof_received()

    slow_between_requests.append(close_client_side)
    async with serve() as server, connected(server, (GET + b"\r\n") * 3) as (reader, _):
        assert (await read_all(reader)).count(b"hello") == 3


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_request_is_cancelled_if_the_half_closed_client_is_gone(serve, handlers, monkeypatch, version):
    monkeypatch.setattr(half_close, "HTTP_10_SECONDS", 0.05)
    request = GET.replace(b"/ ", b"/wait ").replace(b"HTTP/1.1", version) + b"\r\n"
    async with serve() as server:
        async with connected(server, request) as (_, writer):
            await handlers.started.acquire()
            writer.write_eof()
        await server.wait_until_unused()


@pytest.mark.parametrize("data", [GET, POST + b"Content-Length: 10\r\n\r\n12345"], ids=["head", "body"])
async def test_half_closed_client_whose_request_is_incomplete_is_disconnected(serve, data):
    async with serve() as server:
        assert final_response(await half_close_and_read(server, data) or b"HTTP/1.1 000 \r\n\r\n").status == 0


async def test_malformed_head_at_the_time_limit_gets_one_response(serve, logged, loop_clock):
    async with serve(header_seconds=SHORT) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"G")
            await turns()
            client.sendall(b" / malformed\r\n")
            loop_clock.advance(SHORT)  # the data and the timer are due in the same iteration
            client.setblocking(False)
            data = await asyncio.get_running_loop().sock_recv(client, 10_000)
    assert (parse_response(data).status, data.count(b"HTTP/1.")) == (400, 1)
    assert lines_of(logged(), "unexpected error") == []


async def test_shutdown_does_not_wait_for_lingering_connections(serve):
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        async with serve(max_head_bytes=1024) as server:
            reader, _ = await stack.enter_async_context(connected(server, GET + b"X: " + b"y" * 2000))
            await reader.readuntil(b"}}")
        assert server.connection_count == 0
