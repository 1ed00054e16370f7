"""JSON bodies: what is wrong with them is said with the path of the field."""

from typing import Annotated, Any

import msgspec
import pytest

from osaurusd.config import Config, Input, Server
from osaurusd.errors import InvalidJson, InvalidRequest
from osaurusd.http import body
from osaurusd.http.app import make_app

from .serve import serving

JSON = "Content-Type: application/json"
MANY = 100_000


class Item(msgspec.Struct):
    name: str
    size: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0


class Order(msgspec.Struct):
    items: list[Item]
    table: dict[str, int] = {}
    ratio: float = 0.0
    anything: Any = None
    whole: int = 0


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: "Strict | None" = None


def test_a_body_becomes_an_object():
    order = body.decode('{"items":[{"name":"Grüße 🦕","size":9}],"unknown":[{}]}'.encode(), Order)
    assert order == Order(items=[Item(name="Grüße 🦕", size=9)])


@pytest.mark.parametrize(
    ("content", "kind", "param", "message"),
    [
        (b'{"items":1}', Order, "items", "`items`: expected `array`, got `int`"),
        (b'{"items":[1]}', Order, "items[0]", "`items[0]`: expected `object`, got `int`"),
        (b'{"items":[{"name":"a"},{"name":1}]}', Order, "items[1].name", "`items[1].name`: expected `str`, got `int`"),
        (b'{"items":[{"name":"a"},{}]}', Order, "items[1].name", "`items[1].name`: is required"),
        (b"{}", Order, "items", "`items`: is required"),
        (b'{"items":[{"name":"a","size":10}]}', Order, "items[0].size", "`items[0].size`: expected `int` <= 9"),
        (b'{"items":[{"name":"a","size":-1}]}', Order, "items[0].size", "`items[0].size`: expected `int` >= 0"),
        (b'{"items":null}', Order, "items", "`items`: expected `array`, got `null`"),
        (b'{"items":[],"table":{"a":"b"}}', Order, "table[...]", "`table[...]`: expected `int`, got `str`"),
        (b'{"name":"a","more":1}', Strict, "more", "`more`: is not a field of this request"),
        (
            b'{"name":"a","inner":{"name":"b","more":1}}',
            Strict,
            "inner.more",
            "`inner.more`: is not a field of this request",
        ),
        (b'{"inner":{"name":"b"}}', Strict, "name", "`name`: is required"),
        (b"[]", Order, None, "the body: expected `object`, got `array`"),
        (b"null", Order, None, "the body: expected `object`, got `null`"),
        (b'"text"', Order, None, "the body: expected `object`, got `str`"),
        (b"1", Order, None, "the body: expected `object`, got `int`"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(content, kind, param, message):
    with pytest.raises(InvalidRequest) as refusal:
        body.decode(content, kind)
    assert type(refusal.value) is InvalidRequest
    assert (refusal.value.param, refusal.value.message) == (param, message)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" ", id="blank"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b'{"items":[]', id="cut"),
        pytest.param(b'{"items":[]} x', id="trailing garbage"),
        pytest.param(b'{"items":[]}{"items":[]}', id="two bodies"),
        pytest.param(b"{'items':[]}", id="single quotes"),
        pytest.param(b'{"items":[],}', id="trailing comma"),
        pytest.param(b'{"items":[],"ratio":NaN}', id="NaN"),
        pytest.param(b'{"items":[],"ratio":-Infinity}', id="Infinity"),
        pytest.param(b'{"items":[],"anything":NaN}', id="NaN anywhere"),
        pytest.param(b'{"items":[],"unknown":NaN}', id="NaN in an unknown field"),
        pytest.param(b'{"items":[],"whole":01}', id="leading zero"),
        pytest.param(b'{"items":[{"name":"\xff"}]}', id="invalid UTF-8"),
        pytest.param(b'{"items":[{"name":"\xed\xa0\x80"}]}', id="a surrogate in UTF-8"),
        pytest.param(b'{"items":[{"name":"\\ud800"}]}', id="a lone high surrogate"),
        pytest.param(b'{"items":[{"name":"\\ud800\\ud800"}]}', id="two high surrogates"),
        pytest.param(b'{"items":[{"name":"\\udc00x"}]}', id="a lone low surrogate"),
        pytest.param(b'{"items":[],"anything":"\\ud83dx"}', id="half a pair anywhere"),
        pytest.param(b'{"items":[{"name":"a\nb"}]}', id="a newline in a text"),
        pytest.param(b'\xef\xbb\xbf{"items":[]}', id="a byte order mark"),
        pytest.param('{"items":[]}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"items":[],"anything":' + b"[" * MANY + b"]" * MANY + b"}", id="nested too deeply"),
        pytest.param(b'{"items":[],"anything":' + b'{"a":' * MANY + b"1" + b"}" * MANY + b"}", id="objects too deep"),
        pytest.param(b'{"items":[],"unknown":' + b"[" * MANY + b"]" * MANY + b"}", id="too deep in an unknown field"),
        pytest.param(b"[" * MANY, id="too deep from the first byte"),
    ],
)
def test_what_is_no_json_is_told_as_that(content):
    with pytest.raises((InvalidJson, InvalidRequest)) as refusal:
        body.decode(content, Order)
    if content[:1] != b"[":
        assert type(refusal.value) is InvalidJson
    assert refusal.value.param is None
    assert "JSON" in refusal.value.message or content[:1] == b"["


@pytest.mark.parametrize("field", ["whole", "anything", "ratio"])
@pytest.mark.parametrize("digits", [5000, 500_000])
def test_a_number_of_thousands_of_digits_is_refused(field, digits):
    with pytest.raises(InvalidRequest) as refusal:
        body.decode(b'{"items":[],"%s":%s}' % (field.encode(), b"9" * digits), Order)
    assert refusal.value.param == field


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"items":[{"name":"a","size":99999999999999999999}]}', "items[0].size"),
        (b'{"items":[{"name":"a","size":-99999999999999999999}]}', "items[0].size"),
        (b'{"items":[],"ratio":1e999}', "ratio"),
        (b'{"items":[],"anything":1e999}', "anything"),
        (b'{"items":[],"whole":1.5}', "whole"),
    ],
)
def test_a_number_out_of_range_is_named(content, param):
    with pytest.raises(InvalidRequest) as refusal:
        body.decode(content, Order)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"items":[],"items":[]}', "items"),
        (b'{"items":[],"\\u0069tems":[]}', "items"),
        (b'{"items":[{"name":"a","name":"b"}]}', "items[0].name"),
        (b'{"items":[{"name":"a"},{"name":"a","size":1,"size":1}]}', "items[1].size"),
        (b'{"items":[],"anything":{"a":[{},{"b":{"c":1,"d":1,"c":1}}]}}', "anything.a[1].b.c"),
        (b'{"items":[],"unknown":{"":1,"":2}}', "unknown."),
        (b'{"items":[],"x":1,"x":{"y":1}}', "x"),
    ],
)
def test_a_key_that_is_there_twice_is_named(content, param):
    with pytest.raises(InvalidRequest) as refusal:
        body.decode(content, Order)
    assert (refusal.value.param, refusal.value.message) == (param, f"`{param}`: stands there more than once")


@pytest.mark.parametrize(
    "content",
    [
        b'{"items":[{"name":"a"},{"name":"a"}]}',
        b'{"items":[],"anything":"{\\"a\\":1,\\"a\\":2}"}',
        b'{"items":[],"anything":{"a":{"a":{"a":1}}}}',
        b'{"items":[],"anything":{"a":1,"A":1}}',
    ],
)
def test_what_only_looks_repeated_is_taken(content):
    body.decode(content, Order)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'\xef\xbb\xbf{"items":[]}', "byte order mark"),
        ('{"items":[]}'.encode("utf-16"), "UTF-16"),
        ('{"items":[]}'.encode("utf-32"), "UTF-32"),
        (b'{"items":[],"unknown":"\xff"}', "UTF-8 at byte 23"),
        (b'{"items":[],"\xff":1}', "UTF-8 at byte 13"),
        (b'{"items":[{"name":"\\ud800"}]}', "surrogate"),
        (b'{"items":[],"unknown":"\\udc00"}', "surrogate"),
    ],
)
def test_what_is_wrong_with_the_text_is_said(content, says):
    with pytest.raises(InvalidJson, match=says):
        body.decode(content, Order)


def test_nul_in_a_text_is_a_character_like_others():
    assert body.decode(b'{"items":[{"name":"a\\u0000b"}]}', Order).items[0].name == "a\0b"


@pytest.mark.parametrize("number", [b"9" * 5000, b"-" + b"9" * 5000])
def test_a_number_of_thousands_of_digits_is_refused_also_where_nobody_looks(number):
    with pytest.raises(InvalidRequest, match="digits"):
        body.decode(b'{"items":[],"unknown":%s}' % number, Order)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a\\"[":'], ids=["arrays", "objects", "both"])
def test_so_many_levels_may_be_in_each_other_and_no_more(opening):
    closing = {b"[": b"]", b'{"a":': b"}"}.get(opening, b"}]")
    here = 9 // len(closing)

    def nested(levels):
        return b'{"items":[],"unknown":' + opening * levels + b"1" + closing * levels + b',"also":[[],{},"[[[["]}'

    body.decode(nested(here), Order, Input(max_depth=10))
    with pytest.raises(InvalidJson, match=r"at most 10 levels \(`input.max_depth`\)"):
        body.decode(nested(here + 1), Order, Input(max_depth=10))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b'{"items":[],"anything":[1,2,3,4,5,6,7,8,9]}', "max_values"),
        (b'{"items":[],"anything":[' + b'"",' * 500 + b'""]}', "max_values"),
        (b'{"items":[],"anything":{"a":1,"b":2,"c":3}}', "max_members"),
    ],
)
def test_so_many_values_may_be_in_a_body_and_no_more(content, key):
    body.decode(b'{"items":[],"anything":[":,{[",1,2,3,4,5,6]}', Order, Input(max_values=12, max_members=4))
    with pytest.raises(InvalidRequest, match=rf"`input.{key}`"):
        body.decode(content, Order, Input(max_values=12, max_members=4))


@pytest.fixture
async def server(logged):
    app = make_app(Config(server=Server(max_body_bytes=1000)))

    async def read(request):
        return body.reply(await body.read(request, Order), status=201)

    app.router.add_post("/", read)
    async with serving(app) as server:
        yield server


async def test_a_body_is_read_and_replied_to_as_json(server):
    answer = await server.ask("POST", "/", JSON, body='{"items":[{"name":"ü"}]}'.encode())
    assert answer.status == 201
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json["items"] == [{"name": "ü", "size": 0}]


async def test_a_body_may_come_in_chunks(server):
    answer = await server.send(
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'5\r\n{"ite\r\n7\r\nms":[]}\r\n0\r\n\r\n'
    )
    assert answer.status == 201


async def test_a_wrong_field_is_a_400_that_names_it(server):
    answer = await server.ask("POST", "/", JSON, body=b'{"items":[{"name":1}]}')
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", "items[0].name")


async def test_no_json_is_a_400(server):
    answer = await server.ask("POST", "/", JSON, body=b"{")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_json", None)


@pytest.mark.parametrize("size", [1000, 1001])
async def test_a_body_may_have_just_so_many_bytes(server, size):
    answer = await server.ask("POST", "/", JSON, body=b'{"items":[]}'.ljust(size))
    assert answer.status == (201 if size <= 1000 else 413)


async def test_a_body_in_chunks_may_have_no_more(server):
    answer = await server.send(
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"200\r\n" + b" " * 512 + b"\r\n") * 3
        + b"0\r\n\r\n"
    )
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_body_that_is_not_packed_as_it_says_is_the_clients_fault(server, logged):
    answer = await server.ask("POST", "/", JSON, "Content-Encoding: gzip", body=b'{"items":[]}')
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert [line for line in logged() if line["event"] == "unexpected error"] == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(server, logged):
    reader, writer = await server.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert [line for line in logged() if line["event"] == "unexpected error"] == []


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "iso-8859-1", "nonsense"])
async def test_a_body_in_another_encoding_is_not_read(server, charset):
    answer = await server.ask("POST", "/", f"{JSON}; charset={charset}", body=b'{"items":[]}')
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "us-ascii"])
async def test_an_encoding_that_is_utf8_is_read(server, charset):
    assert (await server.ask("POST", "/", f"{JSON}; charset={charset}", body=b'{"items":[]}')).status == 201


async def test_an_error_quotes_only_so_much(server):
    answer = await server.ask("POST", "/", JSON, body=b'{"items":[],"%s":1,"%s":1}' % (b"k" * 450, b"k" * 450))
    assert len(answer.error["param"]) == 450
    assert len(answer.body) < 2000
