"""Generation requests are subject to `[limits]`."""

import asyncio
import contextlib
import json
import socket
import struct

import msgspec
import pytest

from osaurusd.config import Limits
from osaurusd.http import admission
from tests.osaurusd.pool.helpers import until

from ..helpers import MODEL

pytestmark = pytest.mark.timeout(120)

CHAT = "/v1/chat/completions"
STALL = [{"role": "user", "content": "stall"}]
HELLO = [{"role": "user", "content": "hello"}]


def encode_request(path=CHAT, **fields):
    """Return head and body of a request, which may be sent separately."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


async def set_limits(served, **limits):
    """Load the model, then apply these limits."""
    assert (await served.post(CHAT, messages=HELLO)).status == 200
    served.config = msgspec.structs.replace(served.config, limits=Limits(**limits))


@contextlib.asynccontextmanager
async def sent(served, *parts):
    """Send the parts of a request on a connection that is open while the block runs, and reset afterwards."""
    reader, writer = await served.server.connect()
    try:
        for part in parts:
            writer.write(part)
        yield reader
    finally:
        # Without this, the system would send a FIN, after which a client may still wait for the response.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def test_request_over_max_requests_is_rejected_before_its_body_is_read(served_model):
    await set_limits(served_model, max_requests=1)
    async with sent(served_model, *encode_request(messages=STALL, stream=True)) as reader:
        await reader.readuntil(b"data: ")
        assert served_model.admission.requests == 1
        head, _ = encode_request(messages=HELLO)
        rejected = await served_model.server.send(head)
        models = await served_model.server.request("GET", "/models")
    await until(lambda: served_model.admission.requests == 0)
    accepted = await served_model.post(CHAT, messages=HELLO)
    assert (rejected.status, rejected.error["code"]) == (429, "too_many_requests")
    assert rejected.headers["Retry-After"] == "1"
    assert "`limits.max_requests`" in rejected.error["message"]
    assert (models.status, accepted.status) == (200, 200)


async def test_request_that_takes_too_long_gets_504_and_is_cancelled(served_model):
    await set_limits(served_model, request_seconds=0.7)
    response = await served_model.post(CHAT, messages=STALL)
    assert (response.status, response.error["code"]) == (504, "time_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert "`limits.request_seconds`" in response.error["message"]
    await until(lambda: "cancel" in served_model.worker_frames())
    assert (await served_model.post(CHAT, messages=HELLO)).status == 200


async def test_stream_that_takes_too_long_ends_with_an_error_event(served_model):
    await set_limits(served_model, request_seconds=0.7)
    *_, last = await served_model.stream(CHAT, messages=STALL)
    assert last["error"]["code"] == "time_limit_exceeded"
    await until(lambda: "cancel" in served_model.worker_frames())


async def test_stalled_reader_is_disconnected_and_does_not_delay_others(served_model):
    await set_limits(served_model, reader_stall_seconds=0.2)
    long_messages = [{"role": "user", "content": "word " * 200_000}]
    async with sent(served_model, *encode_request(messages=long_messages, stream=True)) as reader:
        await reader.readuntil(b"data: ")
        reader._transport.pause_reading()  # asyncio's streams have no public method to stop reading
        responses = [await served_model.post(CHAT, messages=HELLO) for _ in range(3)]
        async with asyncio.timeout(60):
            await until(lambda: served_model.admission.requests == 0)
            await until(lambda: "cancel" in served_model.worker_frames())
            await until(lambda: not served_model.server.connection_count)
    assert [response.status for response in responses] == [200, 200, 200]


async def test_slow_reader_is_disconnected_after_the_deadline(served_model, monkeypatch):
    monkeypatch.setattr(admission, "ERROR_EVENT_SECONDS", 0.1)
    await set_limits(served_model, request_seconds=0.7)
    request = encode_request("/v1/completions", prompt=["flood"] * 16, stream=True)
    async with sent(served_model, *request) as reader:
        await reader.readuntil(b"data: ")
        reader._transport.pause_reading()  # see above
        await until(lambda: not served_model.server.connection_count)
    assert served_model.admission.requests == 0
