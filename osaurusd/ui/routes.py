"""The page and its data. The page itself contains no data, so it needs no API key; its data routes do.

`GET /` is the page for browsers, the same facts as JSON for programs that accept it, and for others Ollama's text.
"""

import contextlib
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import hdrs, web

from osaurusd import __version__
from osaurusd.errors import NotFound, OsaurusError
from osaurusd.http.errors import error_body, error_response
from osaurusd.http.json import json_response
from osaurusd.http.paths import normalize_path
from osaurusd.http.request import CONTEXT
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.streaming import SseEvent, stream_sse
from osaurusd.models.catalog import Catalog
from osaurusd.ui.monitor import Monitor
from osaurusd.wire.errors import ErrorEnvelope
from osaurusd.wire.page import ASSETS, Page, PageFile

SNAPSHOT, STREAM = "/ui/snapshot", "/ui/stream"

_OLLAMA_TEXT = "Ollama is running"
"""What Ollama answers. Its clients compare the text to find out whether a server is one."""

_READ = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})


def is_static(request: web.Request) -> bool:
    """Whether a request is for a file of the page, which contains no data."""
    path = normalize_path(request.path)
    return request.method in _READ and (path.startswith(ASSETS) or (path == "/" and _accepts_html(request)))


def ui_routes(catalog: Catalog, monitor: Monitor, page: Page) -> RouteGroup:
    """Create the route group.

    Args:
        catalog: lists the models for programs.
        monitor: has the data of the page.
        page: its files.
    """
    ui = _Ui(catalog, monitor, page)
    routes = [
        Route("GET", "/", ui.show),
        Route("GET", f"{ASSETS}{{name}}", ui.show_asset),
        Route("GET", SNAPSHOT, ui.snapshot),
        Route("GET", STREAM, ui.stream),
    ]
    return RouteGroup("ui", routes, error_response)


class _Ui:
    def __init__(self, catalog: Catalog, monitor: Monitor, page: Page) -> None:
        self._catalog = catalog
        self._monitor = monitor
        self._page = page

    async def show(self, request: web.Request) -> web.Response:
        if _accepts_html(request):
            if self._page.document is None:
                raise NotFound("the files of the page are missing; reinstall osaurusd, or run `make ui` in a checkout")
            response = _file_response(request, self._page.document)
        elif "json" in request.headers.get(hdrs.ACCEPT, ""):
            names = [record.name for record in await self._catalog.available()]
            facts = {"name": "osaurusd", "version": __version__, "openapi": "/openapi.json", "models": names}
            response = json_response(facts)
        else:
            # Clients of Ollama state no preference. Those of other APIs have no use for this path.
            response = web.Response(text=_OLLAMA_TEXT)
        response.headers[hdrs.VARY] = hdrs.ACCEPT
        return response

    async def show_asset(self, request: web.Request) -> web.Response:
        file = self._page.assets.get(request.match_info["name"])
        if file is None:
            raise NotFound("the page has no such file; reload the page")
        return _file_response(request, file)

    async def snapshot(self, _: web.Request) -> web.Response:
        response = json_response(await self._monitor.snapshot())
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        return response

    async def stream(self, request: web.Request) -> web.StreamResponse:
        return await stream_sse(request, self._events(request), error_event=_error_event)

    async def _events(self, request: web.Request) -> AsyncGenerator[SseEvent]:
        check_key = request[CONTEXT].check_key
        async with contextlib.aclosing(self._monitor.subscribe()) as events:
            async for event in events:
                check_key()
                yield event


def _error_event(error: OsaurusError) -> SseEvent:
    return "error", msgspec.json.encode(ErrorEnvelope(error_body(error)))


def _file_response(request: web.Request, file: PageFile) -> web.Response:
    if file.is_unchanged(request.headers.get(hdrs.IF_NONE_MATCH)):
        return web.Response(status=304, headers=file.headers)
    return web.Response(body=file.body, headers=file.headers)


def _accepts_html(request: web.Request) -> bool:
    return "text/html" in request.headers.get(hdrs.ACCEPT, "")
