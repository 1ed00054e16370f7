"""Every request has an id, which its answer and its log lines bear."""

import asyncio

import pytest
import structlog
from aiohttp import web

from osaurusd.config import Config
from osaurusd.errors import ImportFailed
from osaurusd.http import guard, sse
from osaurusd.http.app import make_app
from osaurusd.log import get_logger

from .serve import serving

pytestmark = pytest.mark.timeout(30)  # what waits here waits for something that comes at once

logger = get_logger("test")


@pytest.fixture
def held():
    """Set once the handler of `/wait` runs."""
    return asyncio.Event()


@pytest.fixture
async def server(logged, held):
    app = make_app(Config())
    guard.guard_tcp(app, lambda: Config().server)

    async def hello(request):
        logger.info("inside")
        return web.Response(text="hello")

    async def fail(request):
        raise ImportFailed("no")

    async def crash(request):
        raise RuntimeError("no")

    async def events(request):
        return await sse.stream(request, payloads())

    async def payloads():
        yield b"{}"
        logger.info("in the stream")
        yield b"{}"

    async def wait(request):
        held.set()
        await asyncio.Event().wait()

    app.router.add_get("/", hello)
    app.router.add_get("/fail", fail)
    app.router.add_get("/crash", crash)
    app.router.add_get("/events", events)
    app.router.add_get("/wait", wait)
    async with serving(app) as server:
        yield server


def requests(lines):
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/", "localhost", 200),
        ("HEAD", "/", "localhost", 200),
        ("GET", "/events", "localhost", 200),
        ("GET", "/fail", "localhost", 400),
        ("GET", "/", "evil.example", 403),
        ("GET", "/none", "localhost", 404),
        ("DELETE", "/", "localhost", 405),
        ("POST", "/", "localhost", 415),
        ("GET", "/crash", "localhost", 500),
    ],
)
async def test_every_answer_bears_the_id_that_is_logged(server, logged, method, path, host, status):
    answer = await server.ask(method, path, host=host)
    assert answer.status == status
    (line,) = requests(logged())
    assert line["request_id"] == answer.headers["x-request-id"]
    assert len(line["request_id"]) == 32
    assert (line["method"], line["path"], line["status"], line["level"]) == (method, path, status, "info")
    assert line["ms"] >= 0


async def test_a_preflight_bears_an_id_too(server):
    answer = await server.ask("OPTIONS", "/", "Origin: http://localhost", "Access-Control-Request-Method: GET")
    assert (answer.status, len(answer.headers["x-request-id"])) == (204, 32)


async def test_ids_are_new_for_every_request_whatever_the_client_says(server):
    answers = [await server.ask("GET", "/", "x-request-id: mine") for _ in range(3)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    assert "mine" not in ids


@pytest.mark.parametrize(("path", "event"), [("/", "inside"), ("/events", "in the stream")])
async def test_all_that_a_request_logs_bears_its_id(server, logged, path, event):
    first, second = await asyncio.gather(server.ask("GET", path), server.ask("GET", path))
    ids = {answer.headers["x-request-id"] for answer in (first, second)}
    assert {line["request_id"] for line in logged() if line["event"] == event} == ids
    assert len(ids) == 2


async def test_nothing_else_bears_an_id(server, logged):
    await server.ask()
    logger.info("outside")
    (line,) = [line for line in logged() if line["event"] == "outside"]
    assert "request_id" not in line
    assert structlog.contextvars.get_contextvars() == {}


async def test_a_client_that_leaves_is_logged_as_gone(server, logged, held):
    _, writer = await server.connect()
    writer.write(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await held.wait()
    writer.close()
    await writer.wait_closed()
    await server.ask("GET", "/none")
    lines = requests(logged())
    assert [(line["path"], line["status"]) for line in lines] == [("/wait", "gone"), ("/none", 404)]


async def test_queries_are_not_logged(server, logged):
    await server.ask("GET", "/?secret=1")
    (line,) = requests(logged())
    assert line["path"] == "/"
    assert "secret" not in str(line)
