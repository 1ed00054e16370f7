"""JSON bodies are decoded in one pass, and errors name the path of the field."""

import asyncio
import json
import socket
import threading
import time
from typing import Annotated, Any, Literal

import msgspec
import pytest

from osaurusd.config import Config, Server
from osaurusd.errors import InvalidJson, InvalidRequest
from osaurusd.http.json import decode_body, decode_json, encode_list, json_response, read_json
from osaurusd.json_text import replace_lone_surrogates

from .serve import build_app, serving

JSON = "Content-Type: application/json"
DEEP = 100_000
MAX_LOOP_SECONDS = 0.02
ATTEMPTS = 10


class Item(msgspec.Struct):
    name: str
    size: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0


class Order(msgspec.Struct):
    items: list[Item]
    table: dict[str, int] = {}
    ratio: float = 0.0
    anything: Any = None
    whole: int = 0


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: "Closed | None" = None


class Square(msgspec.Struct, tag="square"):
    size: int = 1


class Line(msgspec.Struct, tag="line"):
    length: int = 1


Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Pair = Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=3, pattern="^[a-z]+$")]


def test_body_becomes_an_object_and_unknown_fields_are_ignored():
    order = decode_json('{"items":[{"name":"Grüße 🦕\\u0000","size":9}],"unknown":[{}]}'.encode(), Order)
    assert order == Order(items=[Item(name="Grüße 🦕\0", size=9)])


def test_whole_floats_are_integers_at_the_levels_where_options_are():
    order = decode_json(b'{"items": [], "whole": 2.0, "ratio": 3.0, "table": {"a": 4e1}, "anything": [1.0]}', Order)

    assert Order(items=[], whole=2, ratio=3.0, table={"a": 40}, anything=[1.0]) == order
    assert [int, float, int, float] == [
        type(each) for each in (order.whole, order.ratio, order.table["a"], order.anything[0])
    ]


@pytest.mark.parametrize(
    ("content", "type_", "param", "message"),
    [
        (b'{"items":1}', Order, "items", "`items`: expected `array`, got `integer`"),
        (b'{"items":[1]}', Order, "items[0]", "`items[0]`: expected `object`, got `integer`"),
        (
            b'{"items":[{"name":"a"},{"name":1}]}',
            Order,
            "items[1].name",
            "`items[1].name`: expected `string`, got `integer`",
        ),
        (b'{"items":[{"name":"a"},{}]}', Order, "items[1].name", "`items[1].name`: is required"),
        (b"{}", Order, "items", "`items`: is required"),
        (b'{"items":[{"name":"a","size":10}]}', Order, "items[0].size", "`items[0].size`: expected `integer` <= 9"),
        (b'{"items":null}', Order, "items", "`items`: expected `array`, got `null`"),
        (b'{"items":[],"table":{"a":"b"}}', Order, "table[...]", "`table[...]`: expected `integer`, got `string`"),
        (b'{"name":"a","more":1}', Closed, "more", "`more`: is not a field of this request"),
        (
            b'{"name":"a","inner":{"name":"b","more":1}}',
            Closed,
            "inner.more",
            "`inner.more`: is not a field of this request",
        ),
        (b'{"inner":{"name":"b"}}', Closed, "name", "`name`: is required"),
        (b"[]", Order, None, "the request body: expected `object`, got `array`"),
        (b"null", Order, None, "the request body: expected `object`, got `null`"),
        (b"true", str | list | None, None, "the request body: expected `string | array | null`, got `boolean`"),
        (b"1", Order, None, "the request body: expected `object`, got `integer`"),
        (b"1.5", int, None, "the request body: expected `integer`, got `number`"),
        (b'"c"', Literal["a", "b"], None, 'the request body: invalid enum value "c"'),
        (b'"it\'s"', Literal["a", "b"], None, """the request body: invalid enum value "it's\""""),
        (b'"a\\"b"', Literal["a", "b"], None, r'the request body: invalid enum value "a\"b"'),
        (b"3", Literal[1, 2], None, "the request body: invalid enum value 3"),
        (b'{"type":"circle"}', Square | Line, "type", '`type`: invalid value "circle"'),
        (b'{"type":1}', Square | Line, "type", "`type`: expected `string`"),
        (b"{}", Square | Line, "type", "`type`: is required"),
        (b"0", Positive, None, "the request body: expected `integer` >= 1"),
        (b"0.0", PositiveNumber, None, "the request body: expected `number` > 0.0"),
        (b"1", PositiveNumber, None, "the request body: expected `number` < 1.0"),
        (b"[]", Pair, None, "the request body: expected `array` of length >= 2"),
        (b"[1,2,3]", Pair, None, "the request body: expected `array` of length <= 2"),
        (b'""', Word, None, "the request body: expected `string` of length >= 1"),
        (b'"abcd"', Word, None, "the request body: expected `string` of length <= 3"),
        (b'"1"', Word, None, 'the request body: expected `string` matching regex "^[a-z]+$"'),
        (b"1e999", float, None, "the request body: number out of range"),
    ],
)
def test_validation_error_names_the_path_of_the_field(content, type_, param, message):
    with pytest.raises(InvalidRequest) as error:
        decode_json(content, type_)
    assert type(error.value) is InvalidRequest
    assert (error.value.param, error.value.message) == (param, message)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"items":[{"name":"a","size":99999999999999999999}]}', "items[0].size"),
        (b'{"items":[],"ratio":1e999}', "ratio"),
        (b'{"items":[],"anything":1e999}', "anything"),
        (b'{"items":[],"whole":1.5}', "whole"),
        (b'{"items":[],"whole":%s}' % (b"9" * 5000), "whole"),
        (b'{"items":[],"anything":%s}' % (b"9" * 5000), "anything"),
    ],
)
def test_number_out_of_range_is_named(content, param):
    with pytest.raises(InvalidRequest) as error:
        decode_json(content, Order)
    assert error.value.param == param


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b'{"items":[]', id="truncated"),
        pytest.param(b'{"items":[]} x', id="trailing garbage"),
        pytest.param(b"{'items':[]}", id="single quotes"),
        pytest.param(b'{"items":[],}', id="trailing comma"),
        pytest.param(b'{"items":[],"ratio":NaN}', id="NaN"),
        pytest.param(b'{"items":[],"unknown":NaN}', id="NaN in an unknown field"),
        pytest.param(b'{"items":[],"whole":01}', id="leading zero"),
        pytest.param(b'{"items":[{"name":"\xff"}]}', id="invalid UTF-8"),
        pytest.param(b'{"items":[{"name":"\\ud800"}]} x', id="lone surrogate and trailing garbage"),
        pytest.param(b'{"items":[{"name":"a\nb"}]}', id="line break in a string"),
        pytest.param(b'\xef\xbb\xbf{"items":[]}', id="byte order mark"),
        pytest.param('{"items":[]}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"items":[],"anything":' + b"[" * DEEP + b"]" * DEEP + b"}", id="deep array"),
        pytest.param(b'{"items":[],"anything":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", id="deep object"),
        pytest.param(b'{"items":[],"unknown":' + b"[" * DEEP + b"]" * DEEP + b"}", id="deep unknown field"),
    ],
)
def test_invalid_json_is_reported_as_such(content):
    with pytest.raises(InvalidJson) as error:
        decode_json(content, Order)
    assert error.value.param is None


class ChatMessage(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]


class Chat(msgspec.Struct):
    model: str
    messages: list[ChatMessage]


@pytest.mark.parametrize("messages", [1, 4_000, 20_000])
async def test_large_body_does_not_hold_up_the_event_loop(messages):
    """CPU time of the loop's thread between two iterations. On a busy machine, it varies: the best of a few counts."""
    content = "a" * (4_000_000 // messages - 30)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}] * messages}).encode()

    async def count(request):
        return json_response(len((await read_json(request, Chat)).messages))

    async with serving(build_app(("POST", "/", count))) as server:
        for _ in range(ATTEMPTS):
            response, longest = await post_and_measure(server.port, body)
            assert response.endswith(str(messages).encode())
            if longest < MAX_LOOP_SECONDS:
                return
    pytest.fail(f"the event loop was held up for {longest} s")


async def test_text_of_a_large_body_is_repaired_beside_the_event_loop(monkeypatch):
    threads = []

    def observed_repair(text):
        threads.append(threading.current_thread())
        return replace_lone_surrogates(text)

    monkeypatch.setattr("osaurusd.http.json.replace_lone_surrogates", observed_repair)
    assert "\ufffd" == (await decode_body(b'"%s\\ud800"' % (b"x" * 2**20), str))[-1]
    assert threads
    assert threading.main_thread() not in threads


async def post_and_measure(port, body):
    """Return the response, and the longest iteration of the event loop meanwhile."""
    sending = asyncio.create_task(asyncio.to_thread(post, port, body))
    longest, before = 0.0, time.thread_time()
    while not sending.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return await sending, longest


def post(port, body):
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode() + body)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
async def server(logged):
    config = Config(server=Server(max_body_bytes=1000))

    async def read(request):
        return json_response(await read_json(request, Order), status=201)

    async with serving(build_app(("POST", "/", read), config=config)) as server:
        yield server


async def test_json_is_read_and_returned(server):
    response = await server.request("POST", "/", JSON, body='{"items":[{"name":"ü"}]}'.encode())
    assert (response.status, response.headers["Content-Type"]) == (201, "application/json")
    assert response.json["items"] == [{"name": "ü", "size": 0}]


async def test_invalid_field_is_a_400_that_names_it(server):
    error = (await server.request("POST", "/", JSON, body=b'{"items":[{"name":1}]}')).error
    assert (error["code"], error["param"]) == ("invalid_request", "items[0].name")


async def test_invalid_json_is_a_400(server):
    response = await server.request("POST", "/", JSON, body=b"{")
    assert (response.status, response.error["code"], response.error["param"]) == (400, "invalid_json", None)


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "nonsense"])
async def test_other_charset_is_a_415(server, charset):
    response = await server.request("POST", "/", f"{JSON}; charset={charset}", body=b'{"items":[]}')
    assert (response.status, response.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "us-ascii"])
async def test_utf8_charset_is_accepted(server, charset):
    assert (await server.request("POST", "/", f"{JSON}; charset={charset}", body=b'{"items":[]}')).status == 201


async def test_long_list_is_encoded_while_other_tasks_run():
    rows = [[0.1 * index] * 1000 for index in range(2000)]
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    encoded = await encode_list(iter(rows))
    task.cancel()
    assert json.loads(msgspec.json.encode({"rows": encoded})) == {"rows": rows}
    assert turns > 5
    assert bytes(await encode_list([])) == b"[]"
