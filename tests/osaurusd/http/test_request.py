"""Bodies: packed and plain, announced and asked for, and never more of them than there is room for."""

import asyncio
import gzip
import tracemalloc
import zlib

import pytest
from aiohttp import web

from osaurusd.config import Config, Limits, Server
from osaurusd.errors import Forbidden
from osaurusd.http import inflate
from osaurusd.http.app import make_app
from osaurusd.http.limits import GATE

from .serve import parsed, serving

pytestmark = pytest.mark.timeout(60)

TEXT = b'{"what": "a body that is packed"}' * 20
MAX_BODY = 1024 * 1024
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def bare(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.fixture
async def app(logged):
    app = make_app(Config(server=Server(max_body_bytes=MAX_BODY), limits=Limits(max_buffered_bytes=3 * MAX_BODY // 2)))

    async def read(request):
        body = await request.read()
        assert body is await request.read()
        return web.Response(body=body)

    async def refuse(request):
        raise Forbidden("no")

    app.router.add_post("/", read)
    app.router.add_post("/refuse", refuse)
    return app


@pytest.fixture
async def server(app):
    async with serving(app) as server:
        yield server


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("GZip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", bare(TEXT)),
        ("identity", TEXT),
        ("", TEXT),
        ("identity, gzip", gzip.compress(TEXT)),
    ],
    ids=["gzip", "x-gzip", "any case", "zlib", "bare deflate", "identity", "empty", "identity and gzip"],
)
async def test_a_packed_body_is_made_plain(server, encoding, packed):
    answer = await server.ask("POST", "/", f"Content-Encoding: {encoding}", body=packed)
    assert (answer.status, answer.body) == (200, TEXT)


async def test_a_packed_body_may_come_in_any_pieces(server):
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in gzip.compress(TEXT))
    head = POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await server.send(head + chunks + b"0\r\n\r\n")
    assert (answer.status, answer.body) == (200, TEXT)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "\xff"])
async def test_other_encodings_are_a_415_that_says_which_are_understood(server, encoding):
    answer = await server.ask("POST", "/", f"Content-Encoding: {encoding}", body=TEXT)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", TEXT),
        ("deflate", b"\xff" + TEXT),
        ("gzip", gzip.compress(TEXT)[:-9]),
        ("gzip", gzip.compress(TEXT)[:5]),
        ("deflate", zlib.compress(TEXT)[:-1]),
        ("gzip", gzip.compress(TEXT)[:-8] + b"12345678"),
        ("gzip", gzip.compress(TEXT) + b"more"),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)),
    ],
    ids=["plain", "no deflate", "cut", "head only", "cut zlib", "wrong sum", "more behind", "two streams"],
)
async def test_a_body_that_is_packed_wrongly_is_a_400(server, encoding, packed):
    answer = await server.ask("POST", "/", f"Content-Encoding: {encoding}", body=packed)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert encoding in answer.error["message"]


@pytest.mark.parametrize("size", [inflate.STEP_BYTES + more for more in (-1, 0, 1, 258)])
@pytest.mark.parametrize("pack", [bare, zlib.compress, gzip.compress])
async def test_a_packed_body_may_end_anywhere(server, pack, size):
    encoding = "gzip" if pack is gzip.compress else "deflate"
    answer = await server.ask("POST", "/", f"Content-Encoding: {encoding}", body=pack(bytes(size)))
    assert (answer.status, len(answer.body)) == (200, size)


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
async def test_a_packed_body_may_have_just_as_many_bytes_as_a_plain_one(server, size):
    answer = await server.ask("POST", "/", "Content-Encoding: gzip", body=gzip.compress(bytes(size)))
    assert answer.status == (200 if size <= MAX_BODY else 413)


async def test_a_bomb_is_a_413_and_costs_little(server):
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(MAX_BODY)) for _ in range(150)) + packer.flush()
    assert len(bomb) < MAX_BODY
    tracemalloc.start()
    try:
        answer = await server.ask("POST", "/", "Content-Encoding: gzip", body=bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert peak < 8 * MAX_BODY


async def test_a_body_that_means_nothing_may_not_go_on_for_ever(server):
    # Empty blocks, as many as one likes: much comes in, and nothing comes out.
    nothing = b"\x00\x00\x00\xff\xff" * (MAX_BODY // 5 + 1)
    answer = await server.ask("POST", "/", "Content-Encoding: deflate", body=b"\x78\x9c" + nothing)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_body_that_waits_for_permission_gets_it_where_it_is_read(server):
    reader, writer = await server.connect()
    writer.write(POST + b"Expect: 100-Continue\r\nContent-Length: 4\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    assert parsed(await reader.read()).body == b"body"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "length", "encoding", "status"),
    [
        (b"/refuse", 4, b"gzip", 403),
        (b"/none", 4, b"gzip", 404),
        (b"/", MAX_BODY + 1, b"gzip", 413),
        (b"/", 4, b"br", 415),
    ],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for(server, path, length, encoding, status):
    head = POST.replace(b"/ ", path + b" ") + b"Expect: 100-continue\r\nContent-Encoding: " + encoding
    answer = await server.send(head + f"\r\nContent-Length: {length}\r\n\r\n".encode())
    assert answer.status == status
    assert answer.error


async def test_http_1_0_knows_no_expectations(server):
    head = POST.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    answer = await server.send(head + b"body")
    assert (answer.status, answer.body) == (200, b"body")


async def test_bodies_wait_for_no_room_and_give_theirs_back(app, server):
    reader, writer = await server.connect()
    writer.write(POST + f"Content-Length: {MAX_BODY}\r\n\r\n".encode() + bytes(MAX_BODY - 1))
    async with asyncio.timeout(20):
        while app[GATE].buffered_bytes < MAX_BODY - 1:  # noqa: ASYNC110  what is counted tells nobody
            await asyncio.sleep(0.01)
    refused = await server.ask("POST", "/", body=bytes(MAX_BODY))
    small = await server.ask("POST", "/", body=b"small")
    writer.write(b"\0")
    answer = parsed(await reader.read())
    writer.close()
    await writer.wait_closed()
    assert (refused.status, refused.error["code"], refused.headers["Retry-After"]) == (429, "too_many_requests", "1")
    assert "`limits.max_buffered_bytes`" in refused.error["message"]
    assert (small.status, answer.status, len(answer.body)) == (200, 200, MAX_BODY)
    assert app[GATE].buffered_bytes == 0
