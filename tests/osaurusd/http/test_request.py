"""Heads and bodies of requests are checked, and violations are reported in the API's error format."""

import asyncio
import random

import pytest
from aiohttp import web

from osaurusd.config import Config, Limits, Server
from osaurusd.errors import Forbidden
from osaurusd.http.admission import Admission
from osaurusd.http.json import json_response, read_json
from osaurusd.http.request import read_body
from osaurusd.http.trusted_hosts import trusted_hosts

from .serve import build_app, connected, parse_response, serving

pytestmark = pytest.mark.timeout(120)

MAX_BODY = 1000
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"

NOT_HTTP = {
    "binary": b"\x00\x01\x02\xff\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "unknown method": b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target without slash": b"GET foo HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "broken absolute target": b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "different lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "length with underscore": POST + b"Content-Length: 1_0\r\n\r\n{}",
    "space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "coding that ends like chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b", chunked\r\n\r\n0\r\n\r\n",
    "coding after chunked": CHUNKED[:-2] + b", gzip\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "bare carriage return": GET + b"X: y\rZ: z\r\n\r\n",
    "folded header": GET + b"X: a\r\n b\r\n\r\n",
    "NUL in a value": GET + b"X: a\x00b\r\n\r\n",
    "header without a colon": GET + b"nothing\r\n\r\n",
    "invalid chunk size": CHUNKED + b"\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "signed chunk size": CHUNKED + b"\r\n+2\r\n{}\r\n0\r\n\r\n",
    "huge chunk size": CHUNKED + b"\r\nFFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"\r\n2\r\n{}XX0\r\n\r\n",
}

REJECTED = {
    "chunks in HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n", 400, "malformed_request"),
    "absolute target of another scheme": (
        b"GET ftp://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        400,
        "malformed_request",
    ),
    "absolute target of another host": (
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        403,
        "forbidden",
    ),
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
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri_too_long"),
    "long value": (GET + b"A: " + b"a" * 20000 + b"\r\n\r\n", 431, "headers_too_large"),
    "long name": (GET + b"A" * 20000 + b": a\r\n\r\n", 431, "headers_too_large"),
    "many headers": (GET + b"".join(b"A%d: b\r\n" % n for n in range(200)) + b"\r\n", 431, "headers_too_large"),
    "large headers": (GET + (b"A: " + b"b" * 8000 + b"\r\n") * 9 + b"\r\n", 431, "headers_too_large"),
    "endless headers": (GET + (b"A: " + b"b" * 8000 + b"\r\n") * 500, 431, "headers_too_large"),
    "transfer coding gzip": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"),
    "CONNECT": (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n", 501, "not_implemented"),
    "expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417, "expectation_failed"),
    "large body by its length": (POST + b"Content-Length: 1001\r\n\r\n", 413, "request_too_large"),
    "large body in chunks": (CHUNKED + b"\r\n" + (b"200\r\n" + b"x" * 512 + b"\r\n") * 5, 413, "request_too_large"),
}


def build_test_app(config, **options):
    async def hello(request):
        return web.Response(text="hello")

    async def echo(request):
        return json_response(await read_json(request, dict))

    async def raw(request):
        return web.Response(body=bytes(await read_body(request)))

    async def reject(request):
        raise Forbidden("no")

    routes = [("GET", "/", hello), ("POST", "/", echo), ("POST", "/raw", raw), ("POST", "/reject", reject)]
    middlewares = [trusted_hosts(lambda: config.server)]
    return build_app(*routes, config=config, middlewares=middlewares, **options)


@pytest.fixture
async def server(logged):
    config = Config(server=Server(max_body_bytes=MAX_BODY))
    async with serving(build_test_app(config), config) as server:
        yield server


async def still_serves(server):
    response = await server.request()
    return (response.status, response.body) == (200, b"hello")


def noise(lines):
    """Return the log lines other than the expected one about a rejection."""
    return [line for line in lines if line["level"] not in ("debug", "info") or "exception" in line]


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_malformed_http_is_a_400_and_closes_the_connection(server, logged, data):
    assert (await server.send(data)).status == 400
    assert await still_serves(server)
    assert noise(logged()) == []


@pytest.mark.parametrize(("data", "status", "code"), REJECTED.values(), ids=REJECTED)
async def test_valid_http_is_rejected_in_the_error_format(server, logged, data, status, code):
    response = await server.send(data)
    assert (response.status, response.error["code"]) == (status, code)
    assert await still_serves(server)
    assert noise(logged()) == []


@pytest.mark.parametrize("name", ["transfer coding gzip", "absolute target of another host", "long value", "CONNECT"])
async def test_connection_is_closed_after_a_rejected_head(server, name):
    response = await server.send(REJECTED[name][0] + GET + b"\r\n")
    assert response.headers["Connection"] == "close"
    assert b"HTTP/1.1" not in response.body


@pytest.mark.parametrize("data", [NOT_HTTP["binary"], NOT_HTTP["NUL in a value"], REJECTED["long value"][0]])
async def test_log_does_not_quote_rejected_requests(server, logged, data):
    await server.send(data)
    (line, *_) = logged()
    assert len(line["reason"]) < 100


async def test_pipelined_requests_are_served_in_order(server):
    post = POST + b"Content-Length: 7\r\n\r\n"
    requests = [post + b'{"n":%d}' % number for number in range(9)]
    response = await server.send(b"".join(requests) + GET + b"Connection: close\r\n\r\n")
    for number in range(9):
        assert (response.status, response.body[:7]) == (200, b'{"n":%d}' % number)
        response = parse_response(response.body[7:])
    assert response.body == b"hello"


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_upgrade_is_ignored(server, upgrade):
    headers = [f"Upgrade: {upgrade}", "Connection: Upgrade", "Sec-WebSocket-Key: eA=="]
    response = await server.request("GET", "/", *headers)
    assert (response.status, response.body) == (200, b"hello")


async def test_absolute_target_of_a_trusted_host_is_served(server):
    data = b"GET http://LOCALHOST:80/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await server.send(data)).body == b"hello"
    response = await server.send(data.replace(b"localhost", b"evil.example").replace(b"LOCALHOST:80", b"evil.example"))
    assert (response.status, response.error["code"]) == (403, "forbidden")


async def test_head_may_arrive_byte_by_byte(server):
    async with connected(server) as (reader, writer):
        for byte in b"\r\n" + GET + b"Connection: close\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        assert parse_response(await reader.read()).body == b"hello"


async def test_chunk_extensions_and_trailers_are_ignored(server):
    body = b'2;a=b\r\n{"\r\n5\r\na":1}\r\n0\r\nX: y\r\n\r\n'
    response = await server.send(CHUNKED + b"Connection: close\r\n\r\n" + body)
    assert (response.status, response.body) == (200, b'{"a":1}')


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
async def test_body_size_is_limited(server, size):
    response = await server.request("POST", "/raw", body=bytes(size))
    assert response.status == (200 if size <= MAX_BODY else 413)


@pytest.mark.parametrize("encoding", ["identity", "", "Identity, identity"])
async def test_identity_encoding_is_accepted(server, encoding):
    response = await server.request("POST", "/raw", f"Content-Encoding: {encoding}", body=b"text")
    assert (response.status, response.body) == (200, b"text")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "\xff"])
async def test_compressed_bodies_are_a_415(server, encoding):
    response = await server.request("POST", "/raw", f"Content-Encoding: {encoding}", body=b"text")
    assert (response.status, response.error["code"]) == (415, "unsupported_encoding")
    assert response.headers["Accept-Encoding"] == "identity"


async def test_continue_is_sent_when_the_body_is_read(server):
    async with connected(server) as (reader, writer):
        head = POST.replace(b"/ ", b"/raw ") + b"Connection: close\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n"
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert parse_response(await reader.read()).body == b"body"


@pytest.mark.parametrize(
    ("path", "length", "headers", "status"),
    [
        (b"/reject", 4, b"", 403),
        (b"/raw", MAX_BODY + 1, b"", 413),
        (b"/raw", 4, b"Content-Encoding: br\r\n", 415),
    ],
)
async def test_no_continue_is_sent_for_a_rejected_request(server, path, length, headers, status):
    head = POST.replace(b"/ ", path + b" ") + headers + b"Expect: 100-continue\r\n"
    assert (await server.send(head + b"Content-Length: %d\r\n\r\n" % length)).status == status


async def test_expectations_are_ignored_in_http_1_0(server):
    head = POST.replace(b"1.1", b"1.0").replace(b"/ ", b"/raw ") + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    assert (await server.send(head + b"body")).body == b"body"


async def test_client_that_disconnects_within_its_body_is_not_an_error(server, logged):
    request = b"POST /raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    async with connected(server, request) as (reader, writer):
        writer.write_eof()
        assert await reader.read() == b""
    assert noise(logged()) == []


async def test_bodies_in_memory_are_limited_and_released(logged):
    config = Config(limits=Limits(max_buffered_bytes=15_000))
    admission = Admission(lambda: config)
    app = build_test_app(config, admission=admission)
    head = b"POST /raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n"
    async with serving(app, config) as server, connected(server, head + bytes(9_999)) as (reader, writer):
        async with asyncio.timeout(60):
            while admission.buffered.count < 9_999:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.01)
        rejected = await server.request("POST", "/raw", body=bytes(10_000))
        small = await server.request("POST", "/raw", body=b"small")
        writer.write(b"\0")
        response = parse_response(await reader.read())
    assert (rejected.status, rejected.error["code"]) == (429, "too_many_requests")
    assert (small.status, response.status, len(response.body)) == (200, 200, 10_000)
    assert admission.buffered.count == 0


async def test_single_body_may_exceed_the_limit_of_all_however_many_parts_it_arrives_in(logged):
    config = Config(limits=Limits(max_buffered_bytes=1000))
    admission = Admission(lambda: config)
    async with serving(build_test_app(config, admission=admission), config) as server:
        response = await server.request("POST", "/raw", body=bytes(3_000_000))
    assert (response.status, len(response.body)) == (200, 3_000_000)
    assert admission.buffered.count == 0


SEEDS = [
    GET + b"\r\n",
    GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    POST + b'Content-Length: 7\r\n\r\n{"a":1}',
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    CHUNKED + b"\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n",
]
INSERTIONS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"\xff",
    b"%00",
    b"0",
    b"-1",
    b"\r\n\r\n",
    b"a" * 300,
]


def mutate(rng):
    """Return one or two requests with some bytes replaced, removed or inserted."""
    data = bytearray(b"".join(rng.choices(SEEDS, k=rng.randint(1, 2))))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 0, 1, 1, 5, 40))] = rng.choice([*INSERTIONS, bytes([rng.randrange(256)])])
    return bytes(data)


async def send_mutated(server, rng):
    """Send a mutated request in two parts, and return the beginning of the response."""
    data = mutate(rng)
    cut = rng.randrange(len(data) + 1)
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
async def test_mutated_requests_cause_no_server_error(logged, count):
    rng = random.Random(count)
    limits = Limits(header_seconds=0.1, body_stall_seconds=0.1, idle_seconds=0.1)
    config = Config(server=Server(max_body_bytes=MAX_BODY), limits=limits)
    app = build_test_app(config)
    async with serving(app, lambda: config) as server:
        statuses = set()
        for _ in range(0, count, 100):
            statuses |= set(await asyncio.gather(*(send_mutated(server, rng) for _ in range(100))))
        config = Config()
        assert await still_serves(server)
    assert statuses >= {b"HTTP/1.1 200"}
    assert {status[:5] for status in statuses} <= {b"HTTP/", b""}
    assert b"500" not in {status[9:] for status in statuses}
    assert noise(logged()) == []
