"""Streams: Server-Sent Events and newline-delimited JSON, whatever fails."""

import asyncio
import json

import pytest
from aiohttp import ClientSession, ClientTimeout, web

from osaurusd.config import Config, Limits, Server
from osaurusd.errors import InvalidRequest, ModelUnloaded
from osaurusd.http import streaming
from osaurusd.http.app import create_app
from osaurusd.http.errors import error_body, error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.streaming import encode_sse, stream_ndjson, stream_sse

from .serve import build_app, connected, serving

pytestmark = pytest.mark.timeout(120)

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def render_error(error):
    return json.dumps({"error": error.code}).encode()


def serving_sse(events, config=None, **options):
    async def handle(request):
        return await stream_sse(request, events(), error_event=render_error, **options)

    return serving(build_app(("GET", "/", handle), config=config))


def serving_ndjson(values, config=None, **options):
    async def handle(request):
        return await stream_ndjson(request, values(), **options)

    return serving(build_app(("GET", "/", handle), config=config))


async def fetch(service):
    # The client has no time limit of its own: some tests advance the clock of the event loop.
    async with (
        service as server,
        ClientSession(timeout=ClientTimeout()) as session,
        session.get(server.url) as response,
    ):
        return response.status, response.headers, await response.text()


def unexpected(lines):
    return [line for line in lines if line["level"] == "error"]


async def test_events_and_the_last_event_are_sent(logged):
    async def events():
        yield b'{"a":1}'
        yield ("delta", '{"b":"ü"}'.encode())

    status, headers, text = await fetch(serving_sse(events, last_event=b"[DONE]"))
    assert (status, headers["Cache-Control"]) == (200, "no-cache")
    assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
    assert "x-request-id" in headers
    assert text == 'data: {"a":1}\n\nevent: delta\ndata: {"b":"ü"}\n\ndata: [DONE]\n\n'


async def test_stream_without_events_is_complete():
    async def events():
        return
        yield b""

    assert (await fetch(serving_sse(events)))[2] == ""
    assert (await fetch(serving_sse(events, last_event=b"[DONE]")))[2] == "data: [DONE]\n\n"


@pytest.mark.parametrize("service", [serving_sse, serving_ndjson])
async def test_error_before_the_first_item_has_its_own_status(service, logged):
    async def items():
        raise InvalidRequest("wrong", param="messages")
        yield b"{}"

    status, headers, text = await fetch(service(items))
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert json.loads(text)["error"]["param"] == "messages"


async def test_unexpected_error_before_the_first_item_is_a_500(logged):
    async def events():
        raise RuntimeError("a secret")
        yield b"{}"

    status, _, text = await fetch(serving_sse(events))
    assert (status, json.loads(text)["error"]["code"]) == (500, "internal_error")
    assert "a secret" not in text
    assert len(unexpected(logged())) == 1


async def test_later_error_is_the_last_event(logged):
    async def events():
        yield b"{}"
        raise ModelUnloaded("unloaded")

    status, _, text = await fetch(serving_sse(events, last_event=b"[DONE]"))
    assert (status, text) == (200, 'data: {}\n\ndata: {"error": "model_unloaded"}\n\n')
    assert unexpected(logged()) == []


async def test_later_unexpected_error_is_hidden_and_logged(logged):
    async def events():
        yield b"{}"
        raise RuntimeError("a secret")

    _, _, text = await fetch(serving_sse(events))
    assert text.endswith('data: {"error": "internal_error"}\n\n')
    (line,) = unexpected(logged())
    assert "RuntimeError: a secret" in line["exception"]
    assert line["request_id"]


async def test_values_are_sent_as_lines(logged):
    async def values():
        yield {"a": 1}
        yield ["ü"]

    _, headers, text = await fetch(serving_ndjson(values))
    assert headers["Content-Type"] == "application/x-ndjson"
    assert text == '{"a":1}\n["ü"]\n'


async def test_later_error_is_the_last_line():
    async def values():
        yield 1
        raise ModelUnloaded("unloaded")

    _, _, text = await fetch(serving_ndjson(values, error_value=error_body))
    assert json.loads(text.splitlines()[-1])["code"] == "model_unloaded"


async def test_events_are_sent_immediately():
    resume = asyncio.Event()

    async def events():
        yield b"1"
        await resume.wait()
        yield b"2"

    async with serving_sse(events) as server, ClientSession() as session, session.get(server.url) as response:
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        resume.set()
        assert await response.content.read() == b"data: 2\n\n"


async def test_headers_wait_for_the_first_event():
    waiting, resume = asyncio.Event(), asyncio.Event()

    async def events():
        waiting.set()
        await resume.wait()
        yield b"1"

    async with serving_sse(events) as server, connected(server, REQUEST) as (reader, _):
        first_line = asyncio.create_task(reader.readline())
        await waiting.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not first_line.done()
        resume.set()
        assert await first_line == b"HTTP/1.1 200 OK\r\n"


QUIET = Config(server=Server(first_byte_seconds=0.02))


async def test_comments_are_sent_while_there_are_no_events():
    resume = asyncio.Event()

    async def events():
        for _ in range(2):
            await resume.wait()
            resume.clear()
            yield b"1"

    async with serving_sse(events, QUIET) as server, ClientSession() as session, session.get(server.url) as response:
        for _ in range(2):
            assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            resume.set()
            while (event := await response.content.readuntil(b"\n\n")) == b": keep-alive\n\n":
                pass
            assert event == b"data: 1\n\n"


async def test_comments_are_sent_often_even_if_headers_may_be_late(monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.02)
    resume = asyncio.Event()

    async def events():
        yield b"1"
        await resume.wait()
        yield b"2"

    late = Config(server=Server(first_byte_seconds=600))
    async with serving_sse(events, late) as server, ClientSession() as session, session.get(server.url) as response:
        for expected in (b"data: 1\n\n", b": keep-alive\n\n", b": keep-alive\n\n"):
            assert await response.content.readuntil(b"\n\n") == expected
        resume.set()


async def test_proxies_must_not_buffer():
    async def events():
        yield b"1"

    for service in (serving_sse(events), serving_ndjson(events)):
        _, headers, _ = await fetch(service)
        assert headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("service", [serving_sse, serving_ndjson])
@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_connection_of_an_http_10_client_ends_with_the_stream(service, connection):
    async def items():
        yield b"1"

    request = b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: %b\r\n\r\n" % connection
    async with service(items) as server:
        response = await server.send(request)
    assert response.body.strip() in (b"data: 1", b'"MQ=="')
    assert "keep-alive" not in response.headers.get("Connection", "").lower()


async def test_error_after_early_headers_is_an_event():
    resume = asyncio.Event()

    async def events():
        await resume.wait()
        raise ModelUnloaded("unloaded")
        yield b""

    async with serving_sse(events, QUIET) as server, ClientSession() as session, session.get(server.url) as response:
        assert response.status == 200
        resume.set()
        assert (await response.text()).endswith('data: {"error": "model_unloaded"}\n\n')


async def test_headers_of_a_quiet_json_stream_are_sent_early():
    resume = asyncio.Event()

    async def values():
        await resume.wait()
        yield 1

    async with serving_ndjson(values, QUIET) as server, ClientSession() as session, session.get(server.url) as response:
        assert response.status == 200
        await asyncio.sleep(0.1)
        resume.set()
        assert await response.text() == "1\n"


@pytest.mark.parametrize("count", [0, 1])
async def test_deadline_ends_the_stream(count, loop_clock):
    async def events():
        for _ in range(count):
            yield b"1"
        loop_clock.advance(5)
        await asyncio.Event().wait()

    async def handle(request):
        return await stream_sse(request, events(), error_event=render_error)

    # Shorter than `server.first_byte_seconds`, after which a stream has the status 200.
    config = Config(limits=Limits(request_seconds=5))
    group = RouteGroup("test", [Route("GET", "/", handle, admitted=True)], error_response)
    status, _, text = await fetch(serving(create_app([group], lambda: config), config))
    assert status == (200 if count else 504)
    assert "time_limit_exceeded" in text


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_disconnect_closes_the_events(logged, after):
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def events():
        try:
            for _ in range(after):
                yield b"{}"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with serving_sse(events) as server, connected(server, REQUEST) as (_, writer):
        await waiting.wait()
        assert not closed.is_set()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(60):
            await closed.wait()
    assert unexpected(logged()) == []


async def test_disconnect_that_a_write_finds_is_logged(logged, monkeypatch):
    async def fail(*_):
        raise ConnectionResetError

    async def events():
        yield b"{}"

    monkeypatch.setattr(web.StreamResponse, "write", fail)
    async with serving_sse(events) as server, connected(server, REQUEST) as (reader, writer):
        await reader.readline()
        writer.close()
        await server.wait_until_unused()
    assert [line["status"] for line in logged() if line["event"] == "request"] == ["disconnected"]


async def test_stream_waits_for_a_client_that_does_not_read(logged):
    sent, closed = [], asyncio.Event()

    async def events():
        try:
            while True:
                sent.append(None)
                yield b"x" * 100_000
        finally:
            closed.set()

    async with serving_sse(events) as server, connected(server, REQUEST) as (reader, writer):
        await reader.readline()
        before = -1
        while len(sent) != before:
            before = len(sent)
            await asyncio.sleep(0.05)
        assert len(sent) < 1000
        writer.transport.abort()
        async with asyncio.timeout(60):
            await closed.wait()
    assert unexpected(logged()) == []


def test_event_is_a_line_of_data_after_its_name():
    assert encode_sse(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert encode_sse(("ping", b"{}")) == b"event: ping\ndata: {}\n\n"


def begun_stream(ended):
    """Return items that begin, then wait until they are closed, which sets `ended`."""

    async def items():
        try:
            yield b'{"a":1}'
            await asyncio.Event().wait()
        finally:
            ended.set()

    return items


@pytest.mark.parametrize("first_byte_seconds", [600, 0])
@pytest.mark.parametrize("service", [serving_sse, serving_ndjson])
async def test_stream_that_has_begun_ends_soon_after_its_client_is_gone(service, first_byte_seconds, monkeypatch):
    """It does not wait for the next comment to fail."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 600)
    ended = asyncio.Event()
    config = Config(server=Server(first_byte_seconds=first_byte_seconds))
    async with service(begun_stream(ended), config) as server, connected(server, REQUEST) as (reader, writer):
        await reader.readuntil(b"a")
        # The system sends a FIN, as for a client that only closes its side.
        writer.close()
        await ended.wait()


async def test_stream_continues_for_a_client_that_has_closed_its_side():
    resume = asyncio.Event()

    async def events():
        yield b"1"
        await resume.wait()
        yield b"2"

    async with serving_sse(events) as server, connected(server, REQUEST) as (reader, writer):
        await reader.readuntil(b"data: 1\n\n")
        writer.write_eof()
        for _ in range(2):
            await reader.readuntil(streaming._COMMENT)
        resume.set()
        await reader.readuntil(b"data: 2\n\n")
