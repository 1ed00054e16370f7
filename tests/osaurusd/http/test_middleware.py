"""Every request has an id, a log line and a metric, and every error becomes a response in its group's format."""

import asyncio

import pytest
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry

from osaurusd.config import Config, Limits
from osaurusd.errors import ImportFailed, OsaurusError
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.streaming import stream_sse
from osaurusd.log import get_logger
from osaurusd.wire.errors import ErrorCode

from .serve import build_app, build_group, connected, serving

pytestmark = pytest.mark.timeout(120)

logger = get_logger("test")


class Handlers:
    def __init__(self):
        self.waiting = asyncio.Event()

    async def hello(self, request):
        logger.info("in the handler")
        return web.Response(text="hello")

    async def fail(self, request):
        raise OsaurusError.by_code[ErrorCode(request.match_info["code"])]("it failed", param="messages[0]")

    async def crash(self, request):
        raise KeyError("a secret")

    async def conflict(self, request):
        raise web.HTTPConflict(text="not now")

    async def break_off(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"beginning")
        raise ValueError("a secret")

    async def wait(self, request):
        self.waiting.set()
        await asyncio.Event().wait()

    async def stream(self, request):
        return await stream_sse(request, self._events(), error_event=lambda error: b"")

    async def _events(self):
        yield b"{}"
        logger.info("in the stream")
        yield b"{}"

    @property
    def routes(self):
        return [
            ("GET", "/", self.hello),
            ("GET", "/fail/{code}", self.fail),
            ("GET", "/crash", self.crash),
            ("GET", "/conflict", self.conflict),
            ("GET", "/break", self.break_off),
            ("GET", "/wait", self.wait),
            ("GET", "/events", self.stream),
            ("POST", "/post", self.hello),
            ("PUT", "/post", self.hello),
        ]


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def server(logged, handlers):
    async with serving(build_app(*handlers.routes)) as server:
        yield server


def request_lines(lines):
    return [line for line in lines if line["event"] == "request"]


async def test_every_request_is_logged_in_one_line(server, logged):
    for path in ("/", "/fail/busy", "/crash", "/none", "/events"):
        await server.request("GET", path)
    lines = request_lines(logged())
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/", 200),
        ("/fail/busy", 409),
        ("/crash", 500),
        ("/none", 404),
        ("/events", 200),
    ]
    assert all(line["method"] == "GET" and line["ms"] >= 0 and len(line["request_id"]) == 32 for line in lines)


async def test_every_response_has_a_new_id(server):
    paths = ("/", "/crash", "/none", "/events")
    responses = [await server.request("GET", path) for path in paths]
    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == len(paths)


@pytest.mark.parametrize("path", ["/", "/crash", "/none", "/events"])
@pytest.mark.parametrize(
    "id_", ["mine", "0f8fad5b-d9cb-469f-a165-70867728950e", "1-5759e988-bd862e3fe1be46a9/a=b:c@d", "x" * 128]
)
async def test_id_that_the_client_chose_is_kept(server, logged, path, id_):
    response = await server.request("GET", path, f"X-Request-Id: {id_}")
    assert response.headers["x-request-id"] == id_
    assert [line["request_id"] for line in request_lines(logged())] == [id_]


@pytest.mark.parametrize(
    "headers",
    [
        ["x-request-id: "],
        ["x-request-id: a b"],
        [f"x-request-id: {'x' * 129}"],
        ["x-request-id: é"],
        ["x-request-id: a", "x-request-id: b"],
    ],
)
async def test_id_that_is_not_safe_to_repeat_is_replaced(server, logged, headers):
    response = await server.request("GET", "/", *headers)
    assert len(response.headers["x-request-id"]) == 32
    assert [line["request_id"] for line in request_lines(logged())] == [response.headers["x-request-id"]]


@pytest.mark.parametrize(("path", "event"), [("/", "in the handler"), ("/events", "in the stream")])
async def test_log_lines_of_a_request_have_its_id(server, logged, path, event):
    first, second = await asyncio.gather(server.request("GET", path), server.request("GET", path))
    ids = {response.headers["x-request-id"] for response in (first, second)}
    assert {line["request_id"] for line in logged() if line["event"] == event} == ids
    assert structlog.contextvars.get_contextvars() == {}


async def test_disconnected_client_is_logged_and_counted(logged, handlers):
    registry = CollectorRegistry()
    app = build_app(*handlers.routes, metrics=HttpMetrics(registry))
    request = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving(app) as server, connected(server, request) as (_, writer):
        await handlers.waiting.wait()
        writer.close()
        await writer.wait_closed()
        await server.wait_until_unused()
    assert [line["status"] for line in request_lines(logged())] == ["disconnected"]
    labels = {"endpoint": "/wait", "status": "disconnected"}
    assert registry.get_sample_value("osaurus_http_requests_total", labels) == 1


async def test_metrics_count_by_route_without_version_prefix(handlers):
    registry = CollectorRegistry()
    group = RouteGroup("test", [Route("GET", "/items/{id}", handlers.hello)], build_group().error_response, ("", "/v1"))
    async with serving(create_app([group], Config, metrics=HttpMetrics(registry))) as server:
        for path in ("/items/1", "/v1/items/2", "/nowhere/3"):
            await server.request("GET", path)

    def count(endpoint, status):
        labels = {"endpoint": endpoint, "status": status}
        return registry.get_sample_value("osaurus_http_requests_total", labels)

    assert count("/items/{id}", "200") == 2
    assert count("other", "404") == 1


async def test_queries_are_not_logged(server, logged):
    await server.request("GET", "/?secret=1")
    (line,) = request_lines(logged())
    assert line["path"] == "/"
    assert "secret" not in str(line)


@pytest.mark.parametrize("code", ["invalid_request", "queue_full", "load_failed"])
async def test_error_becomes_a_response(server, code):
    response = await server.request("GET", f"/fail/{code}")
    error = response.error
    assert (error["message"], error["param"], error["code"]) == ("it failed", "messages[0]", code)
    assert ("Retry-After" in response.headers) == (code == "queue_full")
    assert ("x-should-retry" in response.headers) == (code == "load_failed")


async def test_unknown_path_is_a_404_that_names_it(server):
    response = await server.request("GET", "/none/at%20all?x=1")
    assert (response.status, response.error["code"]) == (404, "not_found")
    assert response.error["message"] == "the path /none/at all does not exist"


@pytest.mark.parametrize(
    "path", ["//..", "/%ff%00", "/posts/", "/fail/", "/..", "/%2e%2e/post", "/\\..\\x", "/" + "a" * 8000]
)
async def test_odd_paths_are_404s_with_a_short_message(server, path):
    response = await server.request("GET", path)
    assert (response.status, response.error["code"]) == (404, "not_found")
    assert len(response.error["message"]) < 200


async def test_wrong_method_is_a_405_that_lists_the_allowed_ones(server):
    response = await server.request("GET", "/post")
    assert (response.status, response.headers["Allow"]) == (405, "POST, PUT")
    assert response.error["message"] == "GET is not allowed for /post; use POST, PUT"


async def test_other_exceptions_of_aiohttp_are_bad_requests(server):
    response = await server.request("GET", "/conflict")
    assert (response.status, response.error["code"], response.error["message"]) == (400, "invalid_request", "not now")


async def test_unexpected_error_is_hidden_and_logged_with_its_traceback(server, logged):
    response = await server.request("GET", "/crash")
    assert (response.status, response.error["code"]) == (500, "internal_error")
    assert b"a secret" not in response.body
    (line,) = [line for line in logged() if line["level"] == "error"]
    assert "KeyError: 'a secret'" in line["exception"]
    assert line["request_id"] == response.headers["x-request-id"]


async def test_response_that_fails_after_its_headers_is_cut_off(server, logged):
    response = await server.request("GET", "/break")
    assert response.body == b"9\r\nbeginning\r\n"
    (line,) = [line for line in logged() if line["level"] == "error"]
    assert "ValueError" in line["exception"]


async def test_response_to_head_has_no_body(server):
    response = await server.request("HEAD", "/none")
    assert (response.status, response.body) == (404, b"")
    response = await server.request("HEAD", "/")
    assert (response.status, response.headers["Content-Length"], response.body) == (200, "5", b"")


async def test_each_group_renders_the_errors_of_its_routes_and_prefixes(handlers):
    def plain(error):
        return web.Response(status=418, text=error.message)

    async def fail(request):
        raise ImportFailed("failed")

    other = RouteGroup("other", [Route("GET", "/fail", fail)], plain, ("/other",))
    async with serving(create_app([build_group(*handlers.routes), other], Config)) as server:
        for path in ("/other/fail", "/other", "/other/none"):
            assert (await server.request("GET", path)).status == 418
        for path in ("/none", "/others"):
            assert (await server.request("GET", path)).error["code"] == "not_found"


async def test_admitted_route_rejects_requests_before_their_body_is_read(handlers):
    config = Config(limits=Limits(max_requests=1))
    admission = Admission(lambda: config)
    routes = [Route("POST", "/", handlers.wait, admitted=True), Route("GET", "/", handlers.hello)]
    group = RouteGroup("test", routes, build_group().error_response)
    app = create_app([group], lambda: config, admission=admission)
    first = b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving(app, config) as server, connected(server, first) as (_, writer):
        await handlers.waiting.wait()
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        response = await server.send(head)
        other = await server.request()
        writer.close()
        await server.wait_until_unused()
    assert (response.status, response.error["code"]) == (429, "too_many_requests")
    assert (other.status, admission.requests) == (200, 0)


async def test_admitted_route_has_a_time_limit(handlers):
    config = Config(limits=Limits(request_seconds=0.05))
    group = RouteGroup("test", [Route("GET", "/", handlers.wait, admitted=True)], build_group().error_response)
    async with serving(create_app([group], lambda: config), config) as server:
        response = await server.request()
    assert (response.status, response.error["code"]) == (504, "time_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"
