"""Responses over a WebSocket, from the socket to a worker and back."""

import asyncio
import base64
import contextlib
import gc
import struct
import threading

import pytest
from aiohttp import WSMsgType

from osaurusd.config import Config, Defaults, Limits, Server
from osaurusd.errors import Draining
from osaurusd.http.connection import MAX_PIPELINED_BYTES
from osaurusd.json_text import replace_lone_surrogates
from osaurusd.protocols.openai.responses.types import CreateEvent
from osaurusd.protocols.openai.responses.websocket import MAX_LANES, MAX_RESPONSES
from tests.osaurusd.pool.helpers import until

from ...helpers import MODEL

UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {base64.b64encode(b'x' * 16).decode()}",
)
PING, CLOSE, TEXT = 0x9, 0x8, 0x1


def frame(opcode, payload=b"", *, masked=True, length=None):
    """Encode a frame; `length` is the declared one."""
    mask = 0x80 if masked else 0
    head = bytes([0x80 | opcode]) + bytes([mask | 127]) + struct.pack("!Q", len(payload) if length is None else length)
    if len(payload) < 126 and length is None:
        head = bytes([0x80 | opcode, mask | len(payload)])
    return head + (b"\0" * 4 if masked else b"") + payload


@contextlib.asynccontextmanager
async def open_raw(served):
    """Open a WebSocket, and yield the streams of its connection."""
    async with served.server.connection() as (reader, writer):
        writer.write("\r\n".join(["GET /responses HTTP/1.1", "Host: localhost", *UPGRADE, "", ""]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        yield reader, writer


def text_of(events):
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


async def test_events_are_those_of_a_stream(served):
    streamed = await served.events("to be")
    async with served.connect() as socket:
        events = await socket.events(input="to be")

    assert [event["type"] for event in streamed] == [event["type"] for event in events]
    assert list(range(len(events))) == [event["sequence_number"] for event in events]
    assert "to be " == text_of(events)
    assert events[-1]["response"] == (await served.get(events[-1]["response"]["id"])).json


async def test_official_client_continues_over_one_connection(served, openai_client):
    async with openai_client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="to be", store=False)
        first = [event async for event in until_final(connection)][-1].response
        await connection.response.create(model=MODEL, input="or not", previous_response_id=first.id, store=False)
        second = [event async for event in until_final(connection)][-1].response

    assert ("to be ", "or not ") == (first.output_text, second.output_text)
    assert first.id == second.previous_response_id
    assert 404 == (await served.get(second.id)).status


async def until_final(connection):
    async for event in connection:
        yield event
        if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            return


async def test_unstored_response_is_continued_on_its_connection_only(served):
    async with served.connect() as socket, served.connect() as other:
        first = await socket.respond(input="to be", store=False)
        second = await socket.respond(input="or not", previous_response_id=first["id"], store=False)
        assert "completed" == second["status"]
        # Only the last response of a lane is kept.
        for connection, id_ in ((socket, first["id"]), (other, second["id"])):
            error = await connection.error(input="x", previous_response_id=id_)
            assert "previous_response_not_found" == error["code"]


async def test_failed_continuation_drops_the_unstored_response(served):
    async with served.connect() as socket:
        first = await socket.respond(input="to be", store=False)
        await socket.events(input="fail", previous_response_id=first["id"], store=False)
        error = await socket.error(input="x", previous_response_id=first["id"])
    assert "previous_response_not_found" == error["code"]


async def test_stored_response_is_continued_by_http(served):
    async with served.connect() as socket:
        first = await socket.respond(input="to be")
    assert "completed" == (await served.respond("or not", previous_response_id=first["id"]))["status"]


async def test_prompt_is_processed_without_output(served):
    async with served.connect() as socket:
        first = await socket.respond(input="to be", generate=False, store=False)
        second = await socket.respond(input="or not", previous_response_id=first["id"])

    assert ([], 0) == (first["output"], first["usage"]["output_tokens"])
    items = (await served.get(f"{second['id']}/input_items?order=asc")).json["data"]
    assert ["to be", "or not"] == [item["content"][0]["text"] for item in items]


async def test_lanes_are_independent_and_each_is_in_order(served):
    async with served.connect() as socket:
        await socket.send(input="stall", stream_id="a")
        await socket.send(input="later", stream_id="a")
        events = await socket.events(input="to be", stream_id="b")
        events = [event for event in events if event["stream_id"] == "b"]
        while not events or events[-1]["type"] != "response.completed":
            events += [event for event in [await socket.receive()] if event["stream_id"] == "b"]
    assert "to be " == text_of(events)


async def test_number_of_responses_and_lanes_is_limited(served):
    async with served.connect() as socket:
        await socket.send(input="stall")
        for _ in range(MAX_RESPONSES):
            await socket.send(input="x")
        events = []
        while not events or events[-1]["type"] != "error":
            events.append(await socket.receive())
    assert (429, "too_many_requests") == (events[-1]["status"], events[-1]["error"]["code"])
    async with served.connect() as socket:
        for lane in range(MAX_LANES):
            await socket.respond(input="x", stream_id=str(lane))
        assert "stream_id" == (await socket.error(input="x", stream_id="one more"))["param"]
        assert "completed" == (await socket.respond(input="x", stream_id="0"))["status"]


@pytest.mark.parametrize(
    ("event", "param", "status"),
    [
        ({"type": "response.cancel"}, "type", 400),
        ({"input": 1}, "input", 400),
        ({"background": True, "input": "x"}, "background", 400),
        ({"input": "x", "temperature": 9}, "temperature", 400),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url", 400),
        ({"input": "x", "model": "unknown"}, "model", 404),
        ({"input": "x", "conversation": "conv_1"}, "conversation", 404),
    ],
)
async def test_error_is_an_event_and_the_connection_stays_open(served, event, param, status):
    async with served.connect() as socket:
        (error,) = await socket.events(**event)
        assert ("error", status, param) == (error["type"], error["status"], error["error"]["param"])
        assert "completed" == (await socket.respond(input="to be"))["status"]


@pytest.mark.parametrize("message", ["", "x", "[]", "[" * 100_000, '{"type": "response.create"', "{}"])
async def test_garbage_is_an_error(served, message):
    async with served.connect() as socket:
        await socket.socket.send_str(message)
        assert 400 == (await socket.receive())["status"]
        assert "completed" == (await socket.respond(input="to be"))["status"]


async def test_failure_is_an_event_of_the_response(served):
    async with served.connect() as socket:
        events = await socket.events(input="fail")
        assert "response.failed" == events[-1]["type"]
        assert "completed" == (await socket.respond(input="to be"))["status"]


async def test_time_limit_is_an_error(served):
    await served.respond("to be")
    served.config = Config(defaults=Defaults(temperature=0.0), limits=Limits(request_seconds=0.3))
    async with served.connect() as socket:
        await socket.send(input="stall")
        events = []
        while not events or events[-1]["type"] != "error":
            events.append(await socket.receive())
    assert (504, "time_limit_exceeded") == (events[-1]["status"], events[-1]["error"]["code"])


async def test_each_response_counts_as_a_request(served):
    served.config = Config(defaults=Defaults(temperature=0.0), limits=Limits(max_requests=1))
    async with served.connect() as socket, served.connect() as other:
        await socket.send(input="stall")
        await until(lambda: served.admission.requests)
        assert "too_many_requests" == (await other.error(input="x"))["code"]
    await until(lambda: not served.admission.requests)


async def test_binary_message_closes_the_connection(served):
    async with served.connect() as socket:
        await socket.socket.send_bytes(b"{}")
        assert 1003 == await socket.close_code()


async def test_message_beyond_the_size_of_bodies_closes_the_connection(served):
    served.config = Config(server=Server(max_body_bytes=1000))
    async with served.connect() as socket:
        await socket.socket.send_str(" " * 1000)
        assert "invalid_json" == (await socket.receive())["error"]["code"]
        await socket.socket.send_str(" " * 1001)
        assert 1009 == await socket.close_code()


async def test_declared_size_is_checked_before_the_message_arrives(served):
    async with open_raw(served) as (reader, writer), asyncio.timeout(60):
        writer.write(frame(TEXT, length=2**40))
        answer = await reader.read()
    assert struct.pack("!H", 1009) == answer[2:4]


@pytest.mark.parametrize(
    "data", [frame(TEXT, b"{}", masked=False)[:1] + b"\xff" * 20, b"GET / HTTP/1.1\r\n\r\n", frame(0x3)]
)
async def test_invalid_frame_closes_the_connection(served, data):
    async with open_raw(served) as (reader, writer), asyncio.timeout(60):
        writer.write(data)
        writer.write_eof()
        await reader.read()
        await served.server.wait_until_unused()


async def test_ping_is_answered_while_a_response_is_generated(served):
    event = f'{{"type": "response.create", "model": "{MODEL}", "input": "stall"}}'.encode()
    async with open_raw(served) as (reader, writer), asyncio.timeout(60):
        writer.write(frame(TEXT, event) + frame(PING, b"hello"))
        await reader.readuntil(b"\x8a\x05hello")
    await served.server.wait_until_unused()


async def test_large_message_arrives_while_a_response_is_generated(served):
    async with served.connect() as socket:
        await socket.send(input="stall", stream_id="a")
        # More than may be pipelined after an HTTP request.
        await socket.send(input="x " * MAX_PIPELINED_BYTES, generate=False, stream_id="b")
        while (event := await socket.receive())["type"] != "response.completed":
            pass
        assert "b" == event["stream_id"]


async def test_text_of_a_large_message_is_repaired_beside_the_event_loop_and_its_lane_stays_in_order(
    served, monkeypatch
):
    threads = []

    def observed_repair(text):
        threads.append(threading.current_thread())
        return replace_lone_surrogates(text)

    monkeypatch.setattr("osaurusd.http.json.replace_lone_surrogates", observed_repair)
    first, last = "x" * 2**20 + "\ud800", "to be"
    async with served.connect() as socket:
        await socket.send(input=first, generate=False)
        await socket.send(input=last)
        completed = []
        while len(completed) < 2:
            event = await socket.receive()
            if event["type"] == "response.completed":
                completed.append(event["response"]["output"] != [])

    assert [False, True] == completed
    assert threads
    assert threading.main_thread() not in threads


async def test_message_does_not_stay_in_memory_while_its_response_is_generated(served):
    gc.collect()  # what earlier tests have left
    async with served.connect() as socket:
        await socket.send(input=[{"role": "user", "content": "stall"}])
        await until(lambda: "generate" in served.worker_frames())
        assert [] == [each for each in gc.get_objects() if type(each) is CreateEvent]


@pytest.mark.parametrize("closing", ["close frame", "half-closed", "reset"])
async def test_client_that_leaves_stops_its_responses(served, closing):
    event = f'{{"type": "response.create", "model": "{MODEL}", "input": "stall"}}'.encode()
    async with open_raw(served) as (_, writer):
        writer.write(frame(TEXT, event))
        await until(lambda: "generate" in served.worker_frames())
        match closing:
            case "close frame":
                writer.write(frame(CLOSE, struct.pack("!H", 1000)))
            case "half-closed":
                writer.write_eof()
            case "reset":
                writer.transport.abort()
        await until(lambda: "cancel" in served.worker_frames())
        await served.server.wait_until_unused()


async def test_idle_connection_is_closed(served):
    served.config = Config(limits=Limits(websocket_idle_seconds=0.1))
    async with served.connect() as socket:
        assert 1001 == await socket.close_code()


async def test_idle_limit_does_not_apply_to_a_response_in_progress(served):
    async with served.connect(autoping=False) as socket:
        served.config = Config(defaults=Defaults(temperature=0.0), limits=Limits(websocket_idle_seconds=0.1))
        await socket.send(input="hold")
        pings, text = 0, ""
        while "response.completed" not in text:
            message = await socket.socket.receive()
            if message.type is WSMsgType.PING:  # the limit has passed
                pings += 1
            else:
                assert message.type is WSMsgType.TEXT, message
                text = message.data
            if pings == 2:
                served.release()


async def test_idle_connection_makes_room_for_another_one(served):
    served.config = Config(defaults=Defaults(temperature=0.0), limits=Limits(max_connections=2))
    async with served.connect() as busy, served.connect() as idle:
        await busy.send(input="stall")
        await until(lambda: "generate" in served.worker_frames())
        assert 404 == (await served.get("x")).status
        assert 1006 == await idle.close_code()
        assert "response.created" == (await busy.receive())["type"]


async def test_connections_are_closed_at_shutdown(served):
    async with served.connect() as socket:
        await socket.respond(input="to be")
        closing = asyncio.create_task(served.server.close())
        assert 1001 == await socket.close_code()
        await closing


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 405),
        (["Upgrade: h2c", "Connection: Upgrade"], 405),
        (["Upgrade: websocket"], 400),
        ([*UPGRADE[:2], "Sec-WebSocket-Version: 99", UPGRADE[3]], 400),
        ([*UPGRADE[:3], "Sec-WebSocket-Key: x"], 400),
    ],
)
async def test_request_that_cannot_be_upgraded_is_rejected(served, headers, status):
    response = await served.server.request("GET", "/v1/responses", *headers)
    assert status == response.status
    assert response.error["message"]


async def test_draining_finishes_the_responses_that_were_asked_for_before(served):
    async with served.connect() as socket:
        await socket.send(input="hold", stream_id="a")
        await socket.send(input="to be", stream_id="a")
        await until(lambda: served.admission.requests == 1)
        # The second message waits in its lane. A third one makes sure that it has been received.
        assert "invalid_request" == (await socket_error(socket, type="x"))["code"]

        def rejection():
            return Draining("draining")

        served.admission.close(rejection)
        rejected = await socket_error(socket, input="x", stream_id="b")
        assert "draining" == rejected["code"]
        served.release()
        completed = 0
        while completed < 2:
            completed += (await socket.receive())["type"] == "response.completed"
        served.admission.reopen(rejection)
        assert "completed" == (await socket.respond(input="x", stream_id="b"))["status"]


async def socket_error(socket, **event):
    """Send an event that is rejected, and return the error. Other lanes may have events meanwhile."""
    await socket.send(**event)
    while (received := await socket.receive())["type"] != "error":
        assert "response." in received["type"]
    return received["error"]
