"""Streams as OpenAI's clients read them, whatever goes wrong on the way."""

import asyncio
import json

import pytest
from aiohttp import ClientSession

from osaurusd.config import Config
from osaurusd.errors import InvalidRequest, ModelUnloaded
from osaurusd.http import sse
from osaurusd.http.app import make_app

from .serve import serving

pytestmark = pytest.mark.timeout(30)  # what waits here waits for something that comes at once

DONE = "data: [DONE]\n\n"


@pytest.fixture
async def stream(logged):
    """Serves a generator's payloads as a stream; gives status, headers and text."""

    async def stream(payloads):
        async with served(payloads) as server, ClientSession() as session, session.get(server.url) as response:
            return response.status, response.headers, await response.text()

    return stream


def served(payloads):
    app = make_app(Config())

    async def handle(request):
        return await sse.stream(request, payloads())

    app.router.add_get("/", handle)
    return serving(app)


def unexpected(lines):
    return [line for line in lines if line["event"] == "unexpected error"]


async def test_objects_are_events_and_the_end_is_told(stream):
    async def payloads():
        yield b'{"a":1}'
        yield '{"b":"ü"}'.encode()

    status, headers, text = await stream(payloads)
    assert status == 200
    assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache"
    assert "x-request-id" in headers
    assert text == 'data: {"a":1}\n\ndata: {"b":"ü"}\n\n' + DONE


async def test_one_object_is_enough(stream):
    async def payloads():
        yield b"{}"

    assert (await stream(payloads))[2] == "data: {}\n\n" + DONE


async def test_the_first_error_keeps_its_status(stream):
    async def payloads():
        raise InvalidRequest("wrong", param="messages")
        yield b"{}"

    status, headers, text = await stream(payloads)
    assert status == 400
    assert headers["Content-Type"] == "application/json"
    assert json.loads(text) == {
        "error": {"message": "wrong", "type": "invalid_request_error", "param": "messages", "code": "invalid_request"}
    }


async def test_the_first_unexpected_error_is_a_500(stream, logged):
    async def payloads():
        raise RuntimeError("a secret")
        yield b"{}"

    status, _, text = await stream(payloads)
    assert (status, json.loads(text)["error"]["code"]) == (500, "internal_error")
    assert "a secret" not in text
    assert len(unexpected(logged())) == 1


async def test_a_later_error_is_the_last_event(stream, logged):
    async def payloads():
        yield b"{}"
        raise ModelUnloaded("gone")

    status, headers, text = await stream(payloads)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    first, last, rest = text.split("\n\n")
    assert (first, rest) == ("data: {}", "")
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {"message": "gone", "type": "server_error", "param": None, "code": "model_unloaded"}
    }
    assert unexpected(logged()) == []


async def test_a_later_unexpected_error_is_hidden_and_logged(stream, logged):
    async def payloads():
        yield b"{}"
        raise RuntimeError("a secret")

    _, _, text = await stream(payloads)
    last = json.loads(text.split("\n\n")[1].removeprefix("data: "))
    assert last["error"]["code"] == "internal_error"
    assert "a secret" not in text
    assert "[DONE]" not in text
    (line,) = unexpected(logged())
    assert "RuntimeError: a secret" in line["exception"]
    assert line["request_id"]


async def test_events_are_sent_as_they_come():
    go_on = asyncio.Event()

    async def payloads():
        yield b"1"
        await go_on.wait()
        yield b"2"

    async with served(payloads) as server, ClientSession() as session, session.get(server.url) as response:
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        go_on.set()
        assert await response.content.readuntil(b"\n\n") == b"data: 2\n\n"
        assert await response.content.read() == DONE.encode()


async def test_headers_wait_for_the_first_object():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def payloads():
        begun.set()
        await go_on.wait()
        yield b"1"

    async with served(payloads) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        arriving = asyncio.create_task(reader.readline())
        await begun.wait()
        await asyncio.sleep(0.05)
        assert not arriving.done()
        go_on.set()
        assert await arriving == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_client_that_leaves_ends_the_payloads(logged, after):
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def payloads():
        try:
            for _ in range(after):
                yield b"{}"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with served(payloads) as server:
        _, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await waiting.wait()
        assert not closed.is_set()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(10):
            await closed.wait()
    assert unexpected(logged()) == []


async def test_payloads_that_nobody_reads_are_not_run_ahead(logged):
    """Events go out one by one: the sender waits for a client that does not read."""
    sent, closed = [], asyncio.Event()

    async def payloads():
        try:
            while True:
                sent.append(None)
                yield b"x" * 100_000
        finally:
            closed.set()

    async with served(payloads) as server:
        reader, writer = await server.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        before = -1
        while len(sent) != before:
            before = len(sent)
            await asyncio.sleep(0.05)
        assert len(sent) < 1000
        writer.transport.abort()
        async with asyncio.timeout(10):
            await closed.wait()
    assert unexpected(logged()) == []


def test_an_event_is_a_line_of_data():
    assert sse.event(b'{"a":1}') == b'data: {"a":1}\n\n'
