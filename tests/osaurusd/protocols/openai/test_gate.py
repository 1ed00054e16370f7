"""Limits on requests to a model, with a worker that does as it is told."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from tests.osaurusd.pool.asking import until

from osaurusd import app_keys as keys
from osaurusd.config import Limits
from osaurusd.http import admission

from .conftest import MODEL

pytestmark = pytest.mark.timeout(120)

CHAT = "/v1/chat/completions"
STALL = [{"role": "user", "content": "stall"}]
HELLO = [{"role": "user", "content": "hello"}]


def chat(messages, **fields):
    """The bytes of a request, which may be sent in parts."""
    body = json.dumps({"model": MODEL, "messages": messages, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


async def limit(serving, **limits):
    """Have these limits hold from now on; the model is loaded already."""
    assert (await serving.post(CHAT, messages=HELLO)).status == 200
    settings = serving.app[keys.SETTINGS]
    settings.config = msgspec.structs.replace(settings.config, limits=Limits(**limits))


@contextlib.asynccontextmanager
async def asked(serving, *parts):
    reader, writer = await serving.server.connect()
    try:
        for part in parts:
            writer.write(part)
        yield reader
    finally:
        writer.transport.abort()


async def test_a_request_too_many_is_refused_before_its_body_is_read(serving_model):
    await limit(serving_model, max_requests=1)
    gate = serving_model.admission
    async with asked(serving_model, *chat(STALL, stream=True)) as reader:
        await reader.readuntil(b"data: ")
        assert gate.requests == 1
        head, _ = chat(HELLO)
        refused = await serving_model.server.send(head)
        models = await serving_model.server.ask("GET", "/models")
    await until(lambda: gate.requests == 0)
    answer = await serving_model.post(CHAT, messages=HELLO)
    assert (refused.status, refused.error["code"], refused.headers["Retry-After"]) == (429, "too_many_requests", "1")
    assert "`limits.max_requests`" in refused.error["message"]
    assert (models.status, answer.status) == (200, 200)


async def test_a_request_that_takes_too_long_is_a_504_and_its_sequence_ended(serving_model):
    await limit(serving_model, request_seconds=0.7)
    answer = await serving_model.post(CHAT, messages=STALL)
    assert (answer.status, answer.error["code"]) == (504, "time_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert "`limits.request_seconds`" in answer.error["message"]
    await until(lambda: "cancel" in serving_model.received())
    assert (await serving_model.post(CHAT, messages=HELLO)).status == 200


async def test_a_stream_that_takes_too_long_says_so_at_its_end(serving_model):
    await limit(serving_model, request_seconds=0.7)
    *_, last = await serving_model.stream(CHAT, messages=STALL)
    assert last["error"]["code"] == "time_limit_exceeded"
    await until(lambda: "cancel" in serving_model.received())


async def test_a_reader_that_stalls_is_dropped_and_its_sequence_ended_and_others_are_not(serving_model):
    await limit(serving_model, reader_stall_seconds=0.2)
    gate = serving_model.admission
    words = "word " * 200_000
    async with asked(serving_model, *chat([{"role": "user", "content": words}], stream=True)) as reader:
        await reader.readuntil(b"data: ")
        reader._transport.pause_reading()
        answers = [await serving_model.post(CHAT, messages=HELLO) for _ in range(3)]
        async with asyncio.timeout(60):
            await until(lambda: gate.requests == 0)
            await until(lambda: "cancel" in serving_model.received())
            await until(lambda: not serving_model.server.connection_count)
    assert [answer.status for answer in answers] == [200, 200, 200]


async def test_a_reader_that_hardly_reads_is_cut_off_after_the_deadline(serving_model, monkeypatch):
    monkeypatch.setattr(admission, "ERROR_EVENT_SECONDS", 0.1)
    await limit(serving_model, request_seconds=0.7)
    body = json.dumps({"model": MODEL, "prompt": ["flood"] * 16, "stream": True}).encode()
    head = chat(HELLO)[0].replace(CHAT.encode(), b"/v1/completions").partition(b"Content-Length")[0]
    async with asked(serving_model, head + b"Content-Length: %d\r\n\r\n" % len(body), body) as reader:
        await reader.readuntil(b"data: ")
        reader._transport.pause_reading()
        await until(lambda: not serving_model.server.connection_count)
    assert serving_model.admission.requests == 0
