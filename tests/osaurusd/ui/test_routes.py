"""`GET /` is a page for a browser, JSON for a program that accepts it, and Ollama's text for others."""

import asyncio
import json

import pytest
from aiohttp import web

from osaurusd import __version__
from osaurusd.config import Config
from osaurusd.errors import InvalidApiKey
from osaurusd.http.app import create_app
from osaurusd.http.request import CONTEXT
from osaurusd.ui.routes import is_static, ui_routes
from osaurusd.wire.page import Mode, Page
from tests.osaurusd.http.serve import serving
from tests.osaurusd.ui.conftest import DOCUMENT

BROWSER = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
async def build_app(monitored, page_folder):
    page = await asyncio.to_thread(Page.load, Mode.PUBLIC, page_folder)

    def build(**options):
        routes = ui_routes(monitored.catalog, monitored.monitor, page)
        return create_app([routes], Config, **options)

    return build


@pytest.fixture
async def server(build_app):
    async with serving(build_app()) as server:
        yield server


async def test_browser_gets_the_page(server):
    response = await server.request("GET", "/", BROWSER)

    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert response.body.decode() == DOCUMENT
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Vary"] == "Accept"


async def test_page_may_load_nothing_but_its_own_files(server):
    policy = (await server.request("GET", "/", BROWSER)).headers["Content-Security-Policy"]
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))

    assert directives["default-src"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {directives[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("index-1a2b.js", "text/javascript; charset=utf-8"), ("index-3c4d.css", "text/css; charset=utf-8")],
)
async def test_browser_may_keep_files_of_the_page(server, name, content_type):
    response = await server.request("GET", f"/ui/assets/{name}")
    again = await server.request("GET", f"/ui/assets/{name}", f"If-None-Match: {response.headers['ETag']}")

    assert (response.status, response.headers["Content-Type"]) == (200, content_type)
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["index.html", "..%2findex.html", "%2e%2e", "index-1a2b.js%00", "none.js"])
async def test_other_files_are_not_found(server, name):
    assert (await server.request("GET", f"/ui/assets/{name}")).error["code"] == "not_found"


async def test_missing_page_is_an_error_only_for_browsers(monitored, tmp_path):
    page = await asyncio.to_thread(Page.load, Mode.PUBLIC, tmp_path / "nowhere")
    routes = ui_routes(monitored.catalog, monitored.monitor, page)
    async with serving(create_app([routes], Config)) as server:
        assert "reinstall" in (await server.request("GET", "/", BROWSER)).error["message"]
        assert (await server.request("GET", "/")).status == 200


async def test_program_that_accepts_json_gets_json(server):
    response = await server.request("GET", "/", "Accept: application/json")

    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert response.json == {
        "name": "osaurusd",
        "version": __version__,
        "openapi": "/openapi.json",
        "models": ["gemma-2-2b-instruct"],
    }
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize("accept", [[], ["Accept: */*"], ["Accept: text/plain"]])
async def test_ollama_client_can_check_that_the_server_runs(server, accept):
    response = await server.request("GET", "/", *accept)

    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert response.body == b"Ollama is running"
    assert response.headers["Vary"] == "Accept"
    head = await server.request("HEAD", "/", *accept)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "17", b"")


async def test_snapshot_describes_models_and_is_not_cached(server):
    response = await server.request("GET", "/ui/snapshot")

    assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")
    (model,) = response.json["models"]
    assert (model["name"], model["state"], model["fits"]) == ("gemma-2-2b-instruct", "available", True)
    assert response.json["history"]["time"] == []


async def test_files_of_the_page_need_no_key_but_everything_else_does(build_app):
    needs_no_key = {}

    @web.middleware
    async def record(request, handler):
        needs_no_key[request.method, request.path, request.headers.get("Accept")] = is_static(request)
        return await handler(request)

    async with serving(build_app(middlewares=[record])) as server:
        for path in ("/", "//", "/ui/assets/index-1a2b.js"):
            await server.request("GET", path, BROWSER)
        files = dict(needs_no_key)
        needs_no_key.clear()
        for accept in ("application/json", "*/*"):
            await server.request("GET", "/", f"Accept: {accept}")
        for path in ("/ui/snapshot", "/ui/none", "/ui", "/ui/assets", "/ui/assetss"):
            await server.request("GET", path, BROWSER)
        await server.request("POST", "/", BROWSER)

    assert set(files.values()) == {True}
    assert set(needs_no_key.values()) == {False}
    assert (len(files), len(needs_no_key)) == (3, 8)


async def test_revoked_key_ends_the_stream(build_app, monitored):
    @web.middleware
    async def revoke_later(request, handler):
        valid = iter([True])

        def check():
            if not next(valid, False):
                raise InvalidApiKey("revoked")

        request[CONTEXT].check_key = check
        return await handler(request)

    app = build_app(middlewares=[revoke_later])
    async with asyncio.timeout(60), serving(app) as server, server.connection() as (reader, writer):
        writer.write(b"GET /ui/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"event: snapshot")
        monitored.monitor.sample()
        rest = await reader.read()

    assert b'"code":"invalid_api_key"' in rest
    assert b"event: sample" not in rest


async def test_stream_is_one_document_per_event(server, monitored):
    async with asyncio.timeout(60), server.connection() as (reader, writer):
        writer.write(b"GET /ui/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"event: snapshot\ndata: ")
        snapshot = json.loads(await reader.readline())
        monitored.monitor.sample()
        await reader.readuntil(b"event: sample\ndata: ")
        sample = json.loads(await reader.readline())

    assert b"Content-Type: text/event-stream" in head
    assert snapshot["instance"] == "instance"
    assert sample.keys() == {"time", "tokens_per_second", "memory_bytes", "in_flight", "waiting"}
