"""Generation requests are subject to `[limits]`."""

import asyncio
import contextlib
import json
import socket
import struct

import msgspec

from osaurusd.config import Limits
from osaurusd.http.admission import ERROR_EVENT_SECONDS
from tests.osaurusd.pool.helpers import block_until, until

from ..helpers import MODEL

CHAT = "/v1/chat/completions"
STALL = [{"role": "user", "content": "stall"}]
HELLO = [{"role": "user", "content": "hello"}]
REQUEST_SECONDS = 10


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


def has_unsent_data(served):
    """Whether the only connection waits for its client to read."""
    (connection,) = served.server._server._connections
    return connection._transport.get_write_buffer_size() > 0


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


async def test_request_that_takes_too_long_gets_504_and_is_cancelled(served_model, loop_clock):
    await set_limits(served_model, request_seconds=REQUEST_SECONDS)
    posting = asyncio.create_task(served_model.post(CHAT, messages=STALL))
    await served_model.until_received("generate", 2)
    loop_clock.advance(REQUEST_SECONDS)
    response = await posting
    assert (response.status, response.error["code"]) == (504, "time_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert "`limits.request_seconds`" in response.error["message"]
    await served_model.until_received("cancel")
    assert (await served_model.post(CHAT, messages=HELLO)).status == 200


async def test_stream_that_takes_too_long_ends_with_an_error_event(served_model, loop_clock):
    await set_limits(served_model, request_seconds=REQUEST_SECONDS)
    async with sent(served_model, *encode_request(messages=STALL, stream=True)) as reader:
        await reader.readuntil(b"data: ")
        loop_clock.advance(REQUEST_SECONDS)
        await reader.readuntil(b'"code":"time_limit_exceeded"')
    await served_model.until_received("cancel")


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


async def test_slow_reader_is_disconnected_after_the_deadline(served_model, loop_clock):
    await set_limits(served_model, request_seconds=REQUEST_SECONDS)
    request = encode_request("/v1/completions", prompt=["flood"] * 16, stream=True)
    async with sent(served_model, *request) as reader:
        await reader.readuntil(b"data: ")
        reader._transport.pause_reading()  # see above
        await asyncio.to_thread(block_until, lambda: has_unsent_data(served_model))
        loop_clock.advance(REQUEST_SECONDS + ERROR_EVENT_SECONDS)
        await asyncio.to_thread(block_until, lambda: not served_model.server.connection_count)
    assert served_model.admission.requests == 0
