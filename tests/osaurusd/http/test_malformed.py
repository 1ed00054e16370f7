"""What is wrong as HTTP is refused in our words, and the connection is closed: nobody reads on behind it."""

import asyncio
import random

import pytest
from aiohttp import web

from osaurusd.config import Config, Limits, Server
from osaurusd.http import body, guard
from osaurusd.http.app import make_app

from .serve import parsed, serving

pytestmark = pytest.mark.timeout(60)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"

MALFORMED = {
    "binary": b"\x00\x01\x02\xff\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "unknown method": b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version of the future": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/2 without its preface": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "raw bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target that is no path": b"GET foo HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: localhost\r\n\r\n",
    "two different Hosts": GET + b"Host: evil.example\r\n\r\n",
    "absolute target of another scheme": b"GET ftp://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute target with a port too large": b"GET http://localhost:99999/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute target with half an address": b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "one length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "length with a space": POST + b"Content-Length: 2 2\r\n\r\n{}",
    "length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n{}",
    "length that is empty": POST + b"Content-Length: \r\n\r\n{}",
    "length beyond all bounds": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "space before the colon of a length": POST + b"Content-Length : 2\r\n\r\n{}",
    "space before the colon of a coding": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "coding that ends like chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding without chunks": POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "coding after chunks": CHUNKED[:-2] + b", gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b", chunked\r\n\r\n0\r\n\r\n",
    "two codings": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity and chunked": POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control character before chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n",
    "line feeds only": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "a line feed only": GET + b"X: y\nZ: z\r\n\r\n",
    "a carriage return only": GET + b"X: y\rZ: z\r\n\r\n",
    "folded header": GET + b"X: a\r\n b\r\n\r\n",
    "space before the first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "NUL in a value": GET + b"X: a\x00b\r\n\r\n",
    "NUL in a name": GET + b"X\x00: a\r\n\r\n",
    "control character in a value": GET + b"X: a\x01b\r\n\r\n",
    "header without a colon": GET + b"nothing\r\n\r\n",
    "header without a name": GET + b": x\r\n\r\n",
    "old WebSocket": GET + b"Sec-WebSocket-Key1: x\r\n\r\n",
    "chunk size that is none": CHUNKED + b"\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "chunk size with a sign": CHUNKED + b"\r\n+2\r\n{}\r\n0\r\n\r\n",
    "chunk size beyond all bounds": CHUNKED + b"\r\nFFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"\r\n2\r\n{}XX0\r\n\r\n",
    "chunks with line feeds only": CHUNKED + b"\r\n2\n{}\n0\n\n",
}

OTHERS = {
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri_too_long"),
    "long value": (GET + b"A: " + b"a" * 20000 + b"\r\n\r\n", 431, "headers_too_large"),
    "long name": (GET + b"A" * 20000 + b": a\r\n\r\n", 431, "headers_too_large"),
    "many headers": (GET + b"".join(b"A%d: b\r\n" % n for n in range(200)) + b"\r\n", 431, "headers_too_large"),
    "large headers": (GET + (b"A: " + b"b" * 8000 + b"\r\n") * 9 + b"\r\n", 431, "headers_too_large"),
    "headers without end": (GET + (b"A: " + b"b" * 8000 + b"\r\n") * 500, 431, "headers_too_large"),
    "compressed in transfer": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"),
    "absolute target elsewhere": (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 403, "forbidden"),
    "absolute target with another port": (
        b"GET http://localhost:81/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        403,
        "forbidden",
    ),
    "absolute target with a user": (
        b"GET http://localhost@evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        403,
        "forbidden",
    ),
    "CONNECT": (
        b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        501,
        "not_implemented",
    ),
    "expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417, "expectation_failed"),
    "body too large by what it says": (POST + b"Content-Length: 1001\r\n\r\n", 413, "request_too_large"),
    "body too large in chunks": (CHUNKED + b"\r\n" + (b"200\r\n" + b"x" * 512 + b"\r\n") * 5, 413, "request_too_large"),
}


def make(config):
    """A server with a route to ask and one to tell it something."""
    app = make_app(config)
    guard.guard_tcp(app, lambda: config.server)

    async def hello(request):
        return web.Response(text="hello")

    async def read(request):
        return body.reply(await body.read(request, dict))

    app.router.add_get("/", hello)
    app.router.add_post("/", read)
    return app


@pytest.fixture
async def server(logged):
    async with serving(make(Config(server=Server(max_body_bytes=1000)))) as server:
        yield server


async def still_answers(server):
    answer = await server.ask()
    return (answer.status, answer.body) == (200, b"hello")


def noise(lines):
    """What was logged that is not one quiet line about what was refused."""
    return [line for line in lines if line["level"] not in ("debug", "info") or "exception" in line]


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_http_is_refused(server, logged, data):
    answer = await server.send(data)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert answer.headers["Connection"] == "close"
    assert await still_answers(server)
    assert noise(logged()) == []
    assert len(logged()) == 2


@pytest.mark.parametrize(("data", "status", "code"), OTHERS.values(), ids=OTHERS)
async def test_what_is_too_much_or_not_to_be_had_is_refused(server, logged, data, status, code):
    answer = await server.send(data)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["Connection"] == "close"
    assert await still_answers(server)
    assert noise(logged()) == []


@pytest.mark.parametrize("data", [MALFORMED["binary"], MALFORMED["two different Hosts"], OTHERS["long value"][0]])
async def test_what_is_refused_is_not_repeated(server, logged, data):
    answer = await server.send(data)
    assert len(answer.error["message"]) < 300
    assert answer.error["message"].isprintable()
    (line, *_) = logged()
    assert len(line["reason"]) < 300
    assert b"evil" not in answer.body


async def test_a_request_that_is_right_is_answered_before_what_is_wrong_behind_it(server):
    answer = await server.send(GET + b"\r\n" + b"garbage\r\n\r\n")
    assert answer.status == 200
    assert answer.body.startswith(b"helloHTTP/1.1 400 ")


async def test_a_body_is_answered_before_what_is_wrong_behind_it(server):
    answer = await server.send(POST + b"Content-Length: 2\r\n\r\n{}garbage\r\n\r\n")
    assert answer.status == 200
    assert answer.body.startswith(b"{}HTTP/1.1 400 ")


async def test_requests_that_come_at_once_are_answered_in_turn(server):
    post = POST + b"Content-Length: 7\r\n\r\n"
    requests = [post + b'{"n":%d}' % number for number in range(9)]
    last = GET + b"Connection: close\r\n\r\n"
    answer = await server.send(b"".join(requests) + last)
    for number in range(9):
        assert (answer.status, answer.body[:7]) == (200, b'{"n":%d}' % number)
        answer = parsed(answer.body[7:])
    assert answer.body == b"hello"


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_an_upgrade_is_not_made_and_the_request_answered_as_it_is(server, upgrade):
    answer = await server.ask("GET", "/", f"Upgrade: {upgrade}", "Connection: Upgrade", "Sec-WebSocket-Key: eA==")
    assert (answer.status, answer.body) == (200, b"hello")


async def test_a_target_may_be_a_whole_url(server):
    answer = await server.send(b"GET http://LOCALHOST:80/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (answer.status, answer.body) == (200, b"hello")


async def test_a_whole_url_must_be_ours_too(server):
    answer = await server.send(b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "path", ["/%00", "/%ff%zz%1", "//evil.example/x", "/../../etc/passwd", "/%2e%2e/x", "/\\..\\x", "/" + "a" * 8000]
)
async def test_odd_paths_are_not_found_and_hardly_repeated(server, path):
    answer = await server.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert len(answer.error["message"]) < 200


async def test_head_is_answered_as_get_without_the_body(server):
    answer = await server.ask("HEAD", "/")
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "5", b"")


async def test_trailers_and_extensions_of_chunks_are_passed_over(server):
    answer = await server.send(
        CHUNKED + b"Connection: close\r\n\r\n" + b'2;a=b\r\n{"\r\n5\r\na":1}\r\n0\r\nX: y\r\n\r\n'
    )
    assert (answer.status, answer.body) == (200, b'{"a":1}')


async def test_byte_by_byte_is_as_good_as_at_once(server):
    reader, writer = await server.connect()
    for byte in GET + b"Connection: close\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
    assert parsed(await reader.read()).body == b"hello"
    writer.close()
    await writer.wait_closed()


SEEDS = [
    GET + b"\r\n",
    GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    POST + b'Content-Length: 7\r\n\r\n{"a":1}',
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    CHUNKED + b"\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n",
]
SPICES = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"\xff", b"%00", b"0", b"-1", b"\r\n\r\n", b"a" * 300]


def mangled(dice):
    """A request or two with some of its bytes replaced, left out or added."""
    data = bytearray(b"".join(dice.choices(SEEDS, k=dice.randint(1, 2))))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data))
        data[at : at + dice.choice((0, 0, 1, 1, 5, 40))] = dice.choice([*SPICES, bytes([dice.randrange(256)])])
    return bytes(data)


async def answered(server, dice):
    """The first bytes of the answer to something mangled, sent in two parts, until the server closes."""
    data = mangled(dice)
    cut = dice.randrange(len(data) + 1)
    reader, writer = await server.connect()
    try:
        writer.write(data[:cut])
        await writer.drain()
        writer.write(data[cut:])
        async with asyncio.timeout(60):
            return (await reader.read())[:12]
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
async def test_mangled_requests_do_no_harm(logged, count):
    dice = random.Random(count)
    hasty = Limits(header_seconds=0.1, body_stall_seconds=0.1, idle_seconds=0.1)
    async with serving(make(Config(server=Server(max_body_bytes=1000), limits=hasty))) as server:
        statuses = set()
        for _ in range(0, count, 100):
            statuses |= set(await asyncio.gather(*(answered(server, dice) for _ in range(100))))
        assert await still_answers(server)
    assert statuses >= {b"HTTP/1.1 200", b"HTTP/1.1 400"}
    assert {status[:7] for status in statuses} <= {b"HTTP/1.", b""}
    assert b"HTTP/1.1 500" not in statuses
    assert noise(logged()) == []
