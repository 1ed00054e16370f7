"""Which web pages can use the server, and which responses they can read."""

import json

import msgspec
import pytest
from aiohttp import web

from osaurusd.config import Config, Server, load
from osaurusd.errors import ImportFailed
from osaurusd.http.cors import Cors, require_json_body
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.http.trusted_hosts import trusted_hosts

from .serve import build_app, serving

CONFIGURED = "https://chat.example"
JSON = "Content-Type: application/json"
PRIVATE = "Access-Control-Request-Private-Network: true"


class Number(msgspec.Struct):
    number: int


@pytest.fixture
def calls():
    """The paths for which a handler was called."""
    return []


def build_tcp_app(routes, settings):
    """Build an application with the middlewares of a TCP listener, except API keys."""
    cors = Cors(settings)
    return build_app(
        *routes,
        config=Config(server=settings()),
        middlewares=[trusted_hosts(settings), cors.check, require_json_body],
        response_hooks=[cors.add_headers],
    )


@pytest.fixture
async def server(calls):
    settings = Server(
        allowed_hosts=["Studio.local"], allowed_origins=[CONFIGURED, "vscode-webview://*"], max_body_bytes=100
    )

    async def hello(request):
        calls.append(request.path)
        return web.Response(text="hello")

    async def read(request):
        calls.append(request.path)
        return json_response(await read_json(request, Number))

    async def stream(request):
        calls.append(request.path)
        return await stream_sse(request, events(), error_event=lambda error: json.dumps(error.message).encode())

    async def events():
        yield b"{}"
        raise ImportFailed("later")

    async def fail(request):
        raise RuntimeError("unexpected")

    writing = [(method, "/write", read) for method in ("POST", "PUT", "PATCH")]
    routes = [("GET", "/", hello), ("POST", "/", read), *writing, ("GET", "/events", stream), ("GET", "/fail", fail)]
    async with serving(build_tcp_app(routes, lambda: settings)) as server:
        yield server


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:3000",
        "http://127.0.0.1:5173",
        "https://127.0.0.1",
        "http://[::1]:3000",
        CONFIGURED,
    ],
)
async def test_pages_of_allowed_origins_can_send_requests_and_read_responses(server, calls, origin):
    response = await server.request("GET", "/", f"Origin: {origin}")
    assert (response.status, response.body) == (200, b"hello")
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert response.headers["Access-Control-Expose-Headers"] == "x-request-id, request-id, retry-after, x-should-retry"
    assert response.headers.getall("Vary") == ["Origin"]
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_clients_without_origin_are_served(server, calls):
    response = await server.request()
    assert response.status == 200
    assert [name for name in response.headers if name.lower().startswith("access-control")] == []


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://evil.example:8080",
        "http://localhost.evil.example",
        "http://localhost/",
        "http://localhost/page",
        "http://localhost:",
        "http://localhost:3000:3000",
        "HTTP://localhost",
        "http://user@localhost",
        "http://evil.example/localhost",
        "http://localhost@evil.example",
        "http://evil.example#localhost",
        "http://0.0.0.0:3000",
        "http://127.0.0.2",
        "http://[::]",
        "http://[::1",
        "localhost",
        "//localhost",
        "file://",
        "file://localhost",
        "ftp://localhost",
        "chrome-extension://localhost",
        "http://chat.example",
        "https://chat.example:8443",
        "https://chat.example/",
        "https://chat.exampl",
        "https://chat.example.evil.example",
        "https://sub.chat.example",
        "https://CHAT.example",
        "https://chat.example, http://localhost",
        "\xff",
    ],
)
async def test_pages_of_other_origins_are_rejected_before_the_handler(server, calls, origin):
    response = await server.request("GET", "/", f"Origin: {origin}")
    assert response.status == 403
    assert response.error["code"] == "forbidden"
    assert [name for name in response.headers if name.lower().startswith("access-control")] == []
    assert calls == []


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ("http://chat.example:3000", 'allowed_origins = ["http://chat.example:3000"]'),
        ("app://obsidian.md", 'allowed_origins = ["app://obsidian.md"]'),
        ("file://", 'allowed_origins = ["file://"]'),
        ("null", 'allowed_origins = ["null"]'),
    ],
)
async def test_error_shows_the_setting_that_allows_the_origin(server, tmp_path, origin, line):
    message = (await server.request("GET", "/", f"Origin: {origin}")).error["message"]

    assert f'"{origin}"' in message
    assert "`server.allowed_origins`" in message
    assert '"osaurusctl reload"' in message
    assert f"`{line}` under `[server]`" in message
    (file := tmp_path / "config.toml").write_text(f"[server]\n{line}\n")
    assert [origin] == load(file, env={}).server.allowed_origins


async def test_error_for_null_warns_that_any_page_can_send_it(server):
    assert "any web page can send this origin" in (await server.request("GET", "/", "Origin: null")).error["message"]


async def test_error_suggests_no_setting_for_an_invalid_origin(server):
    message = (await server.request("GET", "/", f"Origin: http://{'x' * 4000}")).error["message"]
    assert "allowed_origins = [" not in message
    assert len(message) < 400


@pytest.mark.parametrize("second", ["http://localhost", "http://evil.example", CONFIGURED])
async def test_repeated_origin_is_a_bad_request(server, calls, second):
    response = await server.request("GET", "/", "Origin: http://localhost", f"Origin: {second}")
    assert response.status == 400
    assert "Access-Control-Allow-Origin" not in response.headers
    assert calls == []


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [("GET", "/", "localhost", 200), ("GET", "/none", "localhost", 404), ("HEAD", "/", "evil.example", 403)],
)
async def test_responses_have_security_headers(server, method, path, host, status):
    response = await server.request(method, path, host=host)
    assert response.status == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Vary"] == "Origin"
    assert "Timing-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Sec-Fetch-Site: none"], 200),
        (["Sec-Fetch-Site: same-site"], 200),
        (["Sec-Fetch-Site: cross-site", "Origin: http://localhost:3000"], 200),
        (["Sec-Fetch-Site: cross-site", "Origin: vscode-webview://1a2b"], 200),
        (["Sec-Fetch-Site: cross-site", "Origin: vscode-webview://1a2b.evil.example"], 403),
        (["Sec-Fetch-Site: same-site", "Origin: http://evil.example"], 403),
        (["Sec-Fetch-Site: same-origin", "Origin: http://evil.example"], 403),
        (["Sec-Fetch-Site: Cross-Site"], 403),
        (["Sec-Fetch-Site: something-new"], 403),
        (["Sec-Fetch-Site:"], 403),
        (["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"], 403),
        (["Sec-Fetch-Site: none, cross-site"], 403),
        (["Sec-Fetch-Site: same-origin"], 200),
        (["Sec-Fetch-Site: same-site", "Origin: http://localhost:3000"], 200),
        (["Sec-Fetch-Site: cross-site", f"Origin: {CONFIGURED}"], 200),
        (["Sec-Fetch-Site: cross-site"], 403),
        (["Sec-Fetch-Site: cross-site", "Origin: http://evil.example"], 403),
        (["Sec-Fetch-Site: cross-site", "Origin: null"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], 200),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: document"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"], 403),
    ],
)
async def test_cross_site_requests_without_allowed_origin_are_rejected(server, calls, headers, status):
    response = await server.request("GET", "/", *headers)
    assert response.status == status
    assert calls == (["/"] if status == 200 else [])


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/")])
async def test_link_of_another_site_opens_the_page_only(server, calls, method, path):
    headers = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]
    assert (await server.request(method, path, *headers)).status == 403
    assert calls == []


async def test_same_site_page_needs_an_origin_unless_the_host_is_loopback(server, calls):
    """With another host, `same-site` includes every host of the same domain."""
    assert (await server.request("GET", "/", "Sec-Fetch-Site: same-site", host="studio.local")).status == 403
    assert calls == []
    headers = ["Sec-Fetch-Site: same-site", f"Origin: {CONFIGURED}"]
    assert (await server.request("GET", "/", *headers, host="studio.local")).status == 200


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"],
)
async def test_json_bodies_are_accepted(server, content_type):
    response = await server.request("POST", "/", f"Content-Type: {content_type}", body=b'{"number":1}')
    assert (response.status, response.json) == (200, {"number": 1})


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Content-Type:"],
        ["Content-Type: text/plain"],
        ["Content-Type: text/plain;charset=UTF-8"],
        ["Content-Type: text/plain; application/json"],
        ["Content-Type: application/x-www-form-urlencoded"],
        ["Content-Type: multipart/form-data; boundary=x"],
        ["Content-Type: application/jsonp"],
        ["Content-Type: application/json+x"],
        ["Content-Type: text/json"],
        ["Content-Type: application/octet-stream"],
        ["Content-Type: json"],
        ["Content-Type: application/json, text/plain"],
        ["Content-Type: \xff"],
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_bodies_of_other_media_types_are_rejected_before_the_handler(server, calls, method, headers):
    response = await server.request(method, "/write", *headers, body=b'{"number":1}')
    assert response.status == 415
    assert response.error["code"] == "unsupported_media_type"
    assert "application/json" in response.error["message"]
    assert calls == []


async def test_get_request_may_have_any_content_type(server):
    assert (await server.request("GET", "/", "Content-Type: text/plain")).status == 200


@pytest.mark.parametrize(
    ("path", "methods"), [("/", "GET, HEAD, POST"), ("/events", "GET, HEAD"), ("/none", "GET, HEAD, POST")]
)
@pytest.mark.parametrize("origin", ["http://localhost:3000", CONFIGURED, "vscode-webview://1a2b"])
async def test_preflight_of_allowed_origin_lists_the_methods_of_the_route(server, calls, origin, path, methods):
    response = await server.request(
        "OPTIONS",
        path,
        f"Origin: {origin}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type,x-stainless-lang",
    )
    assert (response.status, response.body) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert response.headers["Access-Control-Allow-Methods"] == methods
    assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-lang"
    assert int(response.headers["Access-Control-Max-Age"]) > 0
    varies = ", ".join(response.headers.getall("Vary"))
    assert varies == "Access-Control-Request-Method, Access-Control-Request-Headers, Origin"
    assert "Access-Control-Allow-Private-Network" not in response.headers
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert calls == []


async def test_preflight_without_requested_headers_allows_none(server):
    response = await server.request("OPTIONS", "/", "Origin: http://localhost", "Access-Control-Request-Method: GET")
    assert response.status == 204
    assert "Access-Control-Allow-Headers" not in response.headers


async def test_preflight_allows_private_network_access(server):
    headers = [f"Origin: {CONFIGURED}", "Access-Control-Request-Method: POST", PRIVATE]
    response = await server.request("OPTIONS", "/", *headers)
    assert response.headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize(
    "requested",
    ["authorization;x", "a b", "é", ",", "content-type,,x", "x" * 2049, "a," * 1024],
    ids=lambda text: text[:9],
)
async def test_preflight_with_malformed_header_names_is_a_bad_request(server, calls, requested):
    headers = [f"Origin: {CONFIGURED}", "Access-Control-Request-Method: POST"]
    response = await server.request("OPTIONS", "/", *headers, f"Access-Control-Request-Headers: {requested}")
    assert response.status == 400
    assert [name for name in response.headers if name.lower().startswith("access-control-allow-")] == [
        "Access-Control-Allow-Origin"
    ]
    assert calls == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://chat.example.evil.example"])
async def test_preflight_of_other_origin_is_rejected(server, calls, origin):
    response = await server.request("OPTIONS", "/", f"Origin: {origin}", "Access-Control-Request-Method: POST", PRIVATE)
    assert response.status == 403
    assert [name for name in response.headers if name.lower().startswith("access-control")] == []
    assert calls == []


@pytest.mark.parametrize(
    "headers",
    [[], ["Access-Control-Request-Method: POST"], ["Origin: http://localhost"]],
    ids=["bare", "no origin", "no method"],
)
async def test_options_request_that_is_no_preflight_is_an_ordinary_request(server, headers):
    assert (await server.request("OPTIONS", "/", *headers)).status == 405


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/none", [], None, 404),
        ("DELETE", "/", [], None, 405),
        ("POST", "/", [JSON], b"garbage", 400),
        ("POST", "/", [JSON], b'{"number":"x"}', 400),
        ("POST", "/", [JSON], b" " * 101, 413),
        ("POST", "/", [], b"{}", 415),
        ("GET", "/fail", [], None, 500),
        ("GET", "/events", [], None, 200),
    ],
)
async def test_pages_of_allowed_origins_can_read_errors_and_streams(server, method, path, headers, content, status):
    response = await server.request(method, path, f"Origin: {CONFIGURED}", *headers, body=content)
    assert response.status == status
    assert response.headers["Access-Control-Allow-Origin"] == CONFIGURED
    assert response.headers["Access-Control-Expose-Headers"] == "x-request-id, request-id, retry-after, x-should-retry"
    assert response.headers["Vary"] == "Origin"
    assert "x-request-id" in response.headers


async def test_page_of_allowed_origin_can_read_the_rejection_of_its_host(server, calls):
    response = await server.request("GET", "/", f"Origin: {CONFIGURED}", host="evil.example")
    assert response.status == 403
    assert response.headers["Access-Control-Allow-Origin"] == CONFIGURED
    assert calls == []


async def test_by_default_only_loopback_pages_are_allowed():
    async with serving(build_tcp_app([], Server)) as server:
        assert (await server.request("GET", "/", "Origin: http://localhost:3000")).status == 404
        assert (await server.request("GET", "/", f"Origin: {CONFIGURED}")).status == 403


async def test_allowed_origins_follow_the_configuration_in_force():
    settings = [Server()]
    async with serving(build_tcp_app([], lambda: settings[-1])) as server:
        for allowed, status in (([], 403), ([CONFIGURED], 404), ([], 403)):
            settings.append(Server(allowed_origins=allowed))
            assert (await server.request("GET", "/", f"Origin: {CONFIGURED}")).status == status
