"""The management page accepts requests of its own page with a session, and no others, on every route."""

import asyncio
import contextlib
import json

import aiohttp
import pytest

from osaurusctl.errors import CliError
from osaurusctl.ui.server import HOST, ManagementServer
from osaurusd.wire import paths
from osaurusd.wire.page import Mode, Page

JSON = {"Content-Type": "application/json"}
FILES = {("GET", "/"), ("GET", "/ui/assets/{name}")}
OPEN = ("POST", "/manage/session")


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text('<meta name="osaurus-mode" content="public">')
    (folder / "assets" / "index-1a2b.js").write_text("1")
    return Page.load(Mode.MANAGE, folder)


class Served:
    """A running server, and a client of it."""

    def __init__(self, server, client, new_links):
        self.server = server
        self.new_links = new_links
        self.origin = f"http://{server.address}"
        self._client = client

    async def send(self, method, path, body=None, **headers):
        """Send a request as the page does, except for `headers`; None removes one. Return the response and its body."""
        sent = {"Origin": self.origin, **JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent = {name: value for name, value in sent.items() if value is not None}
        data = None if body is None else json.dumps(body)
        url = f"{self.origin}{path}"
        async with self._client.request(method, url, data=data, headers=sent, skip_auto_headers=JSON) as response:
            return response, await response.text()

    async def status(self, method, path, body=None, **headers):
        response, _ = await self.send(method, path, body, **headers)
        return response.status

    async def open_session(self, link=None):
        """Open a session, and return the header that proves it."""
        token = (link or self.server.create_link()).partition("#token=")[2]
        response, text = await self.send("POST", "/manage/session", {"token": token})
        assert 200 == response.status, text
        return {"Authorization": f"Bearer {json.loads(text)['session']}"}


@pytest.fixture
async def served(home, page):
    new_links = []
    server = ManagementServer(paths.resolve(), 0, new_links.append, page)
    started = asyncio.Event()
    task = asyncio.create_task(server.serve(started.set))
    await started.wait()
    async with aiohttp.ClientSession() as client:
        yield Served(server, client, new_links)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def routes(served):
    """Every route as method and path."""
    resources = served.server.build_app().router.routes()
    return {(route.method, route.resource.canonical) for route in resources if route.method != "HEAD"}


def example(path):
    return path.replace("{name}", "index-1a2b.js")


async def test_every_route_but_the_files_of_the_page_needs_a_session(served, routes):
    assert len(routes) > 25
    for method, path in routes - FILES - {OPEN}:
        body = {} if method == "POST" else None
        assert 401 == await served.status(method, path, body), path
        assert 401 == await served.status(method, path, body, Authorization="Bearer wrong"), path
        assert 401 == await served.status(method, path, body, Authorization="Basic d3Jvbmc="), path
    assert 401 == await served.status("GET", "/v0/unknown")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost:1"},
        {"Host": HOST},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{HOST}:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
async def test_every_route_rejects_other_pages_even_with_the_session(served, routes, headers):
    session = await served.open_session()
    for method, path in routes:
        body = {} if method == "POST" else None
        response, text = await served.send(method, example(path), body, **session, **headers)
        assert (403, "forbidden") == (response.status, json.loads(text)["error"]["code"]), path
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_every_change_needs_an_origin_and_json(served, routes):
    session = await served.open_session()
    for path in {path for method, path in routes if method == "POST"}:
        assert 403 == await served.status("POST", path, {}, **session, Origin=None), path
        assert 415 == await served.status("POST", path, {}, **session, Content_Type="text/plain"), path


async def test_preflight_requests_are_refused(served, routes):
    for _, path in routes:
        response, _ = await served.send(
            "OPTIONS", example(path), Origin="https://evil.example", Access_Control_Request_Method="POST"
        )
        assert 403 == response.status
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_page_has_its_policy_and_knows_its_mode(served):
    response, text = await served.send("GET", "/", Origin=None)
    assert (200, '<meta name="osaurus-mode" content="manage">') == (response.status, text)
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert "no-cache" == response.headers["Cache-Control"]
    asset, _ = await served.send("GET", "/ui/assets/index-1a2b.js")
    again = await served.status("GET", "/ui/assets/index-1a2b.js", If_None_Match=asset.headers["ETag"])
    assert (200, 304) == (asset.status, again)
    assert 404 == await served.status("GET", "/ui/assets/none.js")


async def test_no_response_is_cached_sniffed_or_a_cookie(served):
    session = await served.open_session()
    for path in ("/manage/session", "/manage/recommended", "/v0/status", "/nowhere"):
        response, _ = await served.send("GET", path, **session)
        assert "no-store" == response.headers["Cache-Control"]
        assert "nosniff" == response.headers["X-Content-Type-Options"]
        assert "same-origin" == response.headers["Cross-Origin-Resource-Policy"]
        assert "Set-Cookie" not in response.headers


async def test_link_works_once_and_using_it_again_ends_the_session(served):
    link = served.server.create_link()
    session = await served.open_session(link)
    assert 200 == await served.status("GET", "/manage/session", **session)

    token = link.partition("#token=")[2]
    assert 401 == await served.status("POST", "/manage/session", {"token": token})
    assert 401 == await served.status("GET", "/manage/session", **session)
    (new_link,) = served.new_links
    await served.open_session(new_link)


async def test_session_can_be_ended(served):
    session = await served.open_session()
    assert 200 == await served.status("POST", "/manage/session/end", {}, **session)
    assert 401 == await served.status("GET", "/manage/session", **session)


@pytest.mark.parametrize("body", [{}, {"token": 1}, {"token": "wrong"}, [], {"token": "x", "more": 1}])
async def test_other_tokens_open_nothing(served, body):
    assert await served.status("POST", "/manage/session", body) in (400, 401)


async def test_without_the_daemon_its_routes_say_so_and_the_others_work(served, home):
    session = await served.open_session()
    response, text = await served.send("GET", "/v0/status", **session)
    assert (503, "daemon_not_running") == (response.status, json.loads(text)["error"]["code"])
    for path in ("/manage/recommended", "/manage/config", "/manage/logs"):
        assert 200 == await served.status("GET", path, **session), path


@pytest.mark.parametrize(
    "path", ["/v0/shutdown", "/v0/keys", "/v0/imports", "/v0/models/remove", "/v0/prune", "/metrics"]
)
async def test_nothing_else_of_the_daemon_is_reachable(served, path):
    session = await served.open_session()
    assert 404 == await served.status("POST", path, {}, **session)
    assert 404 == await served.status("GET", path, **session)


async def test_configuration_is_checked_before_it_is_changed(served, home):
    session = await served.open_session()
    change = {"key": "residency.keep_alive_seconds", "value": "15m"}
    _, checked = await served.send("POST", "/manage/config/check", change, **session)
    assert {"key": change["key"], "value": 900} == json.loads(checked)
    assert not (home / "config.toml").exists()

    for path in ("/manage/config/check", "/manage/config"):
        response, text = await served.send("POST", path, {**change, "value": "soon"}, **session)
        error = json.loads(text)["error"]
        assert (400, "config_error", change["key"]) == (response.status, error["code"], error["param"])
        assert "/tmp/tmp" not in error["message"]
    assert not (home / "config.toml").exists()

    _, changed = await served.send("POST", "/manage/config", change, **session)
    assert {**change, "value": 900, "applied": [], "needs_restart": []} == json.loads(changed)
    _, shown = await served.send("GET", "/manage/config", **session)
    settings = {setting["key"]: setting for setting in json.loads(shown)["settings"]}
    assert ("file", 900, "seconds") == tuple(settings[change["key"]][key] for key in ("source", "value", "unit"))

    await served.send("POST", "/manage/config", {**change, "value": None}, **session)
    assert "keep_alive" not in (home / "config.toml").read_text()


async def test_removal_needs_the_name_again(served):
    session = await served.open_session()
    response, text = await served.send("POST", "/manage/remove", {"model": "tiny", "confirm": "other"}, **session)
    assert (400, "confirm") == (response.status, json.loads(text)["error"]["param"])


@pytest.mark.parametrize("query", ["lines=-1", "lines=99999", "lines=00000099999", "lines=x", "level=loud"])
async def test_invalid_log_queries_are_rejected(served, query):
    session = await served.open_session()
    assert 400 == await served.status("GET", f"/manage/logs?{query}", **session)


async def test_logs_can_be_followed(served, home):
    log = home / "logs" / "osaurusd.log"
    log.parent.mkdir()
    log.write_text('{"level":"info","event":"old"}\n{"level":"debug","event":"hidden"}\n')
    session = await served.open_session()
    headers = {"Origin": served.origin, **session}
    url = f"{served.origin}/manage/logs?follow=1&level=info"
    async with asyncio.timeout(60), aiohttp.ClientSession() as client, client.get(url, headers=headers) as response:
        assert "old" == json.loads(await response.content.readline())["event"]
        with log.open("a") as file:
            file.write('{"level":"info","event":"new"}\n')
        assert "new" == json.loads(await response.content.readline())["event"]


def test_port_in_use_is_an_error_that_names_an_option(home, page):
    first = ManagementServer(paths.resolve(), 0, print, page)
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(CliError, match=f"cannot listen on {HOST}:{port}") as raised:
        ManagementServer(paths.resolve(), port, print, page)
    assert "--port" in raised.value.hint
    first.close()
