"""Who may speak to the daemon over TCP, and that nobody else gets as far as a handler."""

import msgspec
import pytest
from aiohttp import web

from osaurusd.config import Config, Server, load
from osaurusd.errors import ImportFailed
from osaurusd.http import body, guard, sse
from osaurusd.http.app import make_app

from .serve import serving

CONFIGURED = "https://chat.example"
JSON = "Content-Type: application/json"


class Number(msgspec.Struct):
    number: int


@pytest.fixture
def calls():
    """What handlers were called for."""
    return []


@pytest.fixture
async def server(calls):
    config = Config(
        server=Server(
            allowed_hosts=["Studio.local", "fd00::1"],
            allowed_origins=[CONFIGURED, "vscode-webview://*"],
            max_body_bytes=100,
        )
    )
    app = make_app(config)
    guard.guard_tcp(app, lambda: config.server)

    async def hello(request):
        calls.append(request.path)
        return web.Response(text="hello")

    async def read(request):
        calls.append(request.path)
        return body.reply(await body.read(request, Number))

    async def events(request):
        calls.append(request.path)
        return await sse.stream(request, payloads())

    async def payloads():
        yield b"{}"
        raise ImportFailed("later")

    async def fail(request):
        raise RuntimeError("unexpected")

    app.router.add_get("/", hello)
    app.router.add_post("/", read)
    app.router.add_get("/events", events)
    app.router.add_get("/fail", fail)
    async with serving(app) as server:
        yield server


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost:1",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]",
        "[0000::0001]:8080",
        "studio.local",
        "STUDIO.local:8080",
        "[fd00::1]:8080",
        "[FD00:0::1]:8080",
    ],
)
async def test_our_own_names_are_served(server, calls, host):
    answer = await server.ask(host=host)
    assert (answer.status, answer.body) == (200, b"hello")
    assert calls == ["/"]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost:",
        "localhost:65536",
        "[localhost]",
        "[127.0.0.1]",
        "[::1%lo]",
        "[::1%25lo]",
        "[::1]x",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "0.0.0.0:8080",
        "[::]",
        "[::]:8080",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "evil-localhost",
        "xlocalhost",
        "localhost.",
        "localhost.:8080",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "::1",
        "[::1",
        "[::ffff:127.0.0.1]",
        "user@localhost",
        "user:secret@localhost:8080",
        "localhost@evil.example",
        "localhost:8080@evil.example",
        "localhost:evil.example",
        "localhost:80:80",
        "localhost, evil.example",
        "localhost/evil.example",
        "local host",
        "\xff",
    ],
)
async def test_other_names_are_refused_before_any_handler(server, calls, host):
    answer = await server.ask(host=host)
    assert answer.status == 403
    assert answer.error["code"] == "forbidden"
    assert calls == []


async def test_the_refusal_names_the_host_and_what_to_do(server):
    answer = await server.ask(host="evil.example:81")
    assert "'evil.example:81'" in answer.error["message"]
    assert "`server.allowed_hosts`" in answer.error["message"]
    assert '`allowed_hosts = ["evil.example"]` under `[server]`' in answer.error["message"]
    assert "`osaurusctl reload`" in answer.error["message"]


@pytest.mark.parametrize("host", ["", "localhost@evil.example", "x" * 4000, "a b", "[::1"])
async def test_what_could_be_no_name_is_not_offered_to_be_one(server, host):
    message = (await server.ask(host=host)).error["message"]
    assert "allowed_hosts = [" not in message
    assert len(message) < 300


@pytest.mark.parametrize("path", ["/", "/events", "/fail", "/none"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
async def test_a_wrong_host_is_refused_whatever_it_asks_for(server, calls, method, path):
    answer = await server.ask(method, path, host="evil.example")
    assert answer.status == 403
    assert calls == []


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", id="missing"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="missing, HTTP 1.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n", id="twice"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\nConnection: close\r\n\r\n", id="two"),
    ],
)
async def test_other_than_one_host_is_a_bad_request(server, calls, request_):
    assert (await server.send(request_)).status == 400
    assert calls == []


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost:8080/", "localhost:8080", 200),
        ("http://LOCALHOST/", "localhost", 200),
        ("http://localhost/", "evil.example", 403),
        ("http://evil.example/", "localhost", 403),
        ("http://evil.example:80/", "localhost", 403),
        ("https://localhost@evil.example/", "localhost", 403),
        ("http://user@localhost/", "localhost", 403),
        ("http://0.0.0.0/", "localhost", 403),
        ("//evil.example/", "localhost", 404),
    ],
)
async def test_a_request_line_that_names_a_server_is_judged_by_that_name_and_its_host(
    server, calls, target, host, status
):
    assert (await server.ask("GET", target, host=host)).status == status
    assert calls == (["/"] if status == 200 else [])


async def test_every_request_of_a_connection_is_judged(server, calls):
    answer = await server.send(
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert b"HTTP/1.1 403 Forbidden" in answer.body
    assert calls == ["/"]


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        (Server(), set()),
        (Server(host="127.0.0.1"), set()),
        (Server(host="192.0.2.1"), {"192.0.2.1"}),
        (Server(host="::1"), set()),
        (Server(host="0:0:0:0:0:0:0:1"), set()),
        (Server(host="FD00:0::1"), {"[fd00::1]"}),
        (Server(host="fd00::1"), {"[fd00::1]"}),
        (Server(host="Studio.local"), {"studio.local"}),
        (Server(host="0.0.0.0"), set()),
        (Server(host="::"), set()),
        (Server(host="0:0:0:0:0:0:0:0"), set()),
        (Server(host=""), set()),
        (Server(allowed_hosts=["A.example", "::2", "[::3]"]), {"a.example", "[::2]", "[::3]"}),
        (Server(host="0.0.0.0", allowed_hosts=["a.example"]), {"a.example"}),
    ],
)
def test_our_names_are_loopback_the_bound_address_and_what_is_configured(settings, more):
    assert guard.allowed_hosts(settings) == {"localhost", "127.0.0.1", "[::1]"} | more


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
async def test_pages_of_known_origins_may_call_and_read(server, calls, origin):
    answer = await server.ask("GET", "/", f"Origin: {origin}")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Expose-Headers"] == "x-request-id, retry-after, x-should-retry"
    assert answer.headers.getall("Vary") == ["Origin"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_what_comes_from_no_page_needs_no_origin(server, calls):
    answer = await server.ask()
    assert answer.status == 200
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []


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
async def test_pages_of_other_origins_are_refused_before_any_handler(server, calls, origin):
    answer = await server.ask("GET", "/", f"Origin: {origin}")
    assert answer.status == 403
    assert answer.error["code"] == "forbidden"
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
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
async def test_the_refusal_names_the_setting_the_line_and_the_command_that_would_allow_it(
    server, tmp_path, origin, line
):
    message = (await server.ask("GET", "/", f"Origin: {origin}")).error["message"]

    assert repr(origin) in message
    assert "`server.allowed_origins`" in message
    assert "`osaurusctl reload`" in message
    assert f"`{line}` under `[server]`" in message
    (file := tmp_path / "config.toml").write_text(f"[server]\n{line}\n")
    assert [origin] == load(file, env={}).server.allowed_origins


async def test_the_refusal_of_null_says_who_sends_it(server):
    assert "any web page can send this one" in (await server.ask("GET", "/", "Origin: null")).error["message"]


async def test_what_is_no_origin_is_not_offered_to_be_allowed_and_shown_in_part(server):
    message = (await server.ask("GET", "/", f"Origin: http://{'x' * 4000}")).error["message"]
    assert "allowed_origins = [" not in message
    assert len(message) < 400


@pytest.mark.parametrize("second", ["http://localhost", "http://evil.example", CONFIGURED])
async def test_two_origins_are_a_bad_request(server, calls, second):
    answer = await server.ask("GET", "/", "Origin: http://localhost", f"Origin: {second}")
    assert answer.status == 400
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert calls == []


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [("GET", "/", "localhost", 200), ("GET", "/none", "localhost", 404), ("HEAD", "/", "evil.example", 403)],
)
async def test_no_page_may_embed_an_answer_or_take_it_for_another_type(server, method, path, host, status):
    answer = await server.ask(method, path, host=host)
    assert answer.status == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Vary"] == "Origin"
    assert "Timing-Allow-Origin" not in answer.headers


async def test_a_page_that_gave_its_name_our_address_is_refused(server, calls):
    origin = "Origin: http://evil.example:8080"
    assert (await server.ask("GET", "/", origin, host="evil.example:8080")).status == 403
    assert (await server.ask("POST", "/", origin, JSON, host="evil.example:8080", body=b"{}")).status == 403
    assert calls == []


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
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"], 403),
    ],
)
async def test_what_browsers_call_cross_site_is_refused(server, calls, headers, status):
    answer = await server.ask("GET", "/", *headers)
    assert answer.status == status
    assert calls == (["/"] if status == 200 else [])


async def test_a_page_of_the_same_site_needs_an_origin_where_that_is_more_than_this_machine(server, calls):
    """Over a name of ours, `same-site` may be any host of the same domain."""
    assert (await server.ask("GET", "/", "Sec-Fetch-Site: same-site", host="studio.local")).status == 403
    assert calls == []
    headers = ["Sec-Fetch-Site: same-site", f"Origin: {CONFIGURED}"]
    assert (await server.ask("GET", "/", *headers, host="studio.local")).status == 200


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"],
)
async def test_bodies_are_taken_as_json(server, content_type):
    answer = await server.ask("POST", "/", f"Content-Type: {content_type}", body=b'{"number":1}')
    assert (answer.status, answer.json) == (200, {"number": 1})


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
async def test_bodies_of_other_types_are_refused_before_any_handler(server, calls, method, headers):
    answer = await server.ask(method, "/", *headers, body=b'{"number":1}')
    assert answer.status == 415
    assert answer.error["code"] == "unsupported_media_type"
    assert "application/json" in answer.error["message"]
    assert calls == []


async def test_what_has_no_body_needs_no_type(server):
    assert (await server.ask("GET", "/", "Content-Type: text/plain")).status == 200


@pytest.mark.parametrize(
    ("path", "methods"), [("/", "GET, HEAD, POST"), ("/events", "GET, HEAD"), ("/none", "GET, HEAD, POST")]
)
@pytest.mark.parametrize("origin", ["http://localhost:3000", CONFIGURED, "vscode-webview://1a2b"])
async def test_a_preflight_is_answered_without_a_handler(server, calls, origin, path, methods):
    answer = await server.ask(
        "OPTIONS",
        path,
        f"Origin: {origin}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type,x-stainless-lang",
    )
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Methods"] == methods
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-lang"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    varies = ", ".join(answer.headers.getall("Vary"))
    assert varies == "Access-Control-Request-Method, Access-Control-Request-Headers, Origin"
    assert "Access-Control-Allow-Private-Network" not in answer.headers
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert calls == []


async def test_a_preflight_that_wants_no_headers_is_given_none(server):
    answer = await server.ask("OPTIONS", "/", "Origin: http://localhost", "Access-Control-Request-Method: GET")
    assert answer.status == 204
    assert "Access-Control-Allow-Headers" not in answer.headers


PRIVATE = "Access-Control-Request-Private-Network: true"


async def test_a_page_of_another_network_is_let_in_if_its_origin_is(server):
    headers = [f"Origin: {CONFIGURED}", "Access-Control-Request-Method: POST", PRIVATE]
    answer = await server.ask("OPTIONS", "/", *headers)
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize(
    "wanted",
    ["authorization;x", "a b", "é", ",", "content-type,,x", "x" * 2049, "a," * 1024],
    ids=lambda text: text[:9],
)
async def test_a_preflight_for_what_are_no_headers_allows_none(server, calls, wanted):
    headers = [f"Origin: {CONFIGURED}", "Access-Control-Request-Method: POST"]
    answer = await server.ask("OPTIONS", "/", *headers, f"Access-Control-Request-Headers: {wanted}")
    assert answer.status == 400
    assert [name for name in answer.headers if name.lower().startswith("access-control-allow-")] == [
        "Access-Control-Allow-Origin"
    ]
    assert calls == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://chat.example.evil.example"])
async def test_a_preflight_of_another_origin_is_refused(server, calls, origin):
    answer = await server.ask("OPTIONS", "/", f"Origin: {origin}", "Access-Control-Request-Method: POST", PRIVATE)
    assert answer.status == 403
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
    assert calls == []


@pytest.mark.parametrize(
    "headers",
    [[], ["Access-Control-Request-Method: POST"], ["Origin: http://localhost"]],
    ids=["bare", "no origin", "no method"],
)
async def test_options_that_are_no_preflight_are_just_another_method(server, headers):
    assert (await server.ask("OPTIONS", "/", *headers)).status == 405


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
async def test_pages_of_known_origins_may_read_errors_and_streams_too(server, method, path, headers, content, status):
    answer = await server.ask(method, path, f"Origin: {CONFIGURED}", *headers, body=content)
    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == CONFIGURED
    assert answer.headers["Access-Control-Expose-Headers"] == "x-request-id, retry-after, x-should-retry"
    assert answer.headers["Vary"] == "Origin"
    assert "x-request-id" in answer.headers


async def test_a_refusal_can_be_read_by_pages_of_known_origins(server, calls):
    answer = await server.ask("GET", "/", f"Origin: {CONFIGURED}", host="evil.example")
    assert answer.status == 403
    assert answer.headers["Access-Control-Allow-Origin"] == CONFIGURED
    assert calls == []


async def test_without_configured_origins_only_loopback_pages_are_known():
    config = Config()
    app = make_app(config)
    guard.guard_tcp(app, lambda: config.server)
    async with serving(app) as server:
        assert (await server.ask("GET", "/", "Origin: http://localhost:3000")).status == 404
        assert (await server.ask("GET", "/", f"Origin: {CONFIGURED}")).status == 403


async def test_what_is_allowed_may_change_while_it_runs():
    allowed = [Server()]
    app = make_app(Config())
    guard.guard_tcp(app, lambda: allowed[-1])
    async with serving(app) as server:
        assert (await server.ask(host="studio.local")).status == 403
        allowed.append(Server(allowed_hosts=["studio.local"], allowed_origins=[CONFIGURED]))
        assert (await server.ask(host="studio.local")).status == 404
        assert (await server.ask("GET", "/", f"Origin: {CONFIGURED}")).status == 404
        allowed.append(Server())
        assert (await server.ask(host="studio.local")).status == 403
        assert (await server.ask("GET", "/", f"Origin: {CONFIGURED}")).status == 403
