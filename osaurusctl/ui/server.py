"""The server of the management page: on a loopback port of this process, for as long as `osaurusctl ui` runs.

The daemon itself opens no port for management. What the page may do with it is listed in `daemon.FORWARDED`.
"""

import asyncio
import socket
from collections.abc import Callable

import msgspec
from aiohttp import hdrs, web

from osaurusctl.errors import CliError
from osaurusctl.ui import guard
from osaurusctl.ui.daemon import FORWARDED, MAX_BODY_BYTES, DaemonProxy, decode
from osaurusctl.ui.errors import RequestError
from osaurusctl.ui.guard import SESSION
from osaurusctl.ui.local import LocalApi
from osaurusctl.ui.sessions import Session, Sessions
from osaurusd.wire import ports
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.page import ASSETS, Mode, Page, PageFile
from osaurusd.wire.paths import Paths

HOST = "127.0.0.1"

SHUTDOWN_SECONDS = 1.0


class LinkToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The token of a link."""

    token: str


class ManagementServer:
    """Serves the page and its routes on `port`; 0 means a free one.

    Args:
        paths: where the daemon keeps its files.
        port: the loopback port.
        report_link: called with a new link when one was used twice or too late.
        page: the files of the page.
    """

    def __init__(self, paths: Paths, port: int, report_link: Callable[[str], None], page: Page) -> None:
        self._socket = _listen(port)
        self._page = page
        self._sessions = Sessions(lambda token: report_link(self._link(token)))
        self._daemon = DaemonProxy(paths.socket)
        self._local = LocalApi(paths, self._daemon)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self._socket.getsockname()[1]}"

    def create_link(self) -> str:
        """Return a new link. Browsers do not send its fragment, so that it is in no log and no `Referer`."""
        return self._link(self._sessions.create_link())

    def run(self, started: Callable[[], None]) -> None:
        """Serve until Ctrl-C; see `serve`."""
        asyncio.run(self.serve(started))

    async def serve(self, started: Callable[[], None]) -> None:
        """Serve until cancelled; `started` is called once the page can be opened."""
        runner = web.AppRunner(
            self.build_app(), access_log=None, handle_signals=False, handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )  # fmt: skip
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
            started()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            self.close()

    def close(self) -> None:
        """Close the port."""
        self._socket.close()

    def build_app(self) -> web.Application:
        """Build the application."""
        checks = [
            guard.render_errors,
            guard.require_own_page(lambda: self.address),
            guard.require_session(self._sessions),
        ]
        app = web.Application(middlewares=checks, client_max_size=MAX_BODY_BYTES)
        app.cleanup_ctx.append(self._daemon.run)
        app.on_response_prepare.append(guard.add_headers)
        app.add_routes(
            [
                web.get("/", self._show_page),
                web.get(f"{ASSETS}{{name}}", self._show_asset),
                web.post(guard.OPEN_SESSION, self._open_session),
                web.get(guard.OPEN_SESSION, self._show_session),
                web.post("/manage/session/end", self._end_session),
                *(web.route(method, path, self._daemon.forward) for method, path in FORWARDED),
                *self._local.routes,
            ]
        )
        return app

    def _link(self, token: str) -> str:
        return f"http://{self.address}/#token={token}"

    async def _show_page(self, request: web.Request) -> web.Response:
        if self._page.document is None:
            raise RequestError(404, ErrorCode.NOT_FOUND, "the files of the page are missing; reinstall osaurusd")
        return _file_response(request, self._page.document)

    async def _show_asset(self, request: web.Request) -> web.Response:
        file = self._page.assets.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        return _file_response(request, file)

    async def _open_session(self, request: web.Request) -> web.Response:
        session = self._sessions.open(decode(await request.read(), LinkToken).token)
        if session is None:
            raise RequestError(
                401,
                ErrorCode.INVALID_API_KEY,
                "the link does not work any more; the terminal that runs osaurusctl ui shows a new one",
            )
        return web.json_response({"session": session.secret, **_describe(session)})

    async def _show_session(self, request: web.Request) -> web.Response:
        return web.json_response(_describe(request[SESSION]))

    async def _end_session(self, request: web.Request) -> web.Response:
        self._sessions.end(request[SESSION])
        return web.json_response({})


def load_page() -> Page:
    return Page.load(Mode.MANAGE)


def _describe(session: Session) -> dict[str, int]:
    return {"expires_at": int(session.expires_at)}


def _file_response(request: web.Request, file: PageFile) -> web.Response:
    if file.is_unchanged(request.headers.get(hdrs.IF_NONE_MATCH)):
        return web.Response(status=304, headers=file.headers)
    return web.Response(body=file.body, headers=file.headers)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        by = f" by {holder}" if port and (holder := ports.holder(port)) else ""
        raise CliError(
            f"cannot listen on {HOST}:{port}: {error.strerror}{by}", hint="choose another port with --port"
        ) from error
