"""The Unix socket of a daemon that cannot serve yet: it says why, and everything else is refused with that reason."""

import os
from collections.abc import Callable

from aiohttp import web

from osaurusd.admin import views
from osaurusd.admin.context import DAEMON
from osaurusd.admin.routes import add_version_check
from osaurusd.errors import NotServing
from osaurusd.pool.report import Budget
from osaurusd.web import body
from osaurusd.wire.admin import ReloadReply, Route, ShutdownReply


class Reason:
    """Why the daemon does not serve; whoever waits changes it."""

    def __init__(self, retry: Callable[[], None]) -> None:
        self.text = ""
        self.retry = retry


REASON = web.AppKey("REASON", Reason)


def add_routes(app: web.Application) -> None:
    """Mount what such a daemon answers; `DAEMON` and `REASON` must be in the application."""
    add_version_check(app)
    app.router.add_get(Route.STATUS, _status)
    app.router.add_post(Route.SHUTDOWN, _shutdown)
    app.router.add_post(Route.RELOAD, _reload)
    app.router.add_route("*", "/{path:.*}", _refuse)


async def _status(request: web.Request) -> web.Response:
    faults = [request.app[REASON].text]
    nothing = Budget(total_bytes=0, used_bytes=0)
    return body.reply(views.status(request.app[DAEMON], None, [], [], nothing, faults, serving=False))


async def _shutdown(request: web.Request) -> web.Response:
    request.app[DAEMON].stop()
    return body.reply(ShutdownReply(pid=os.getpid()), status=202)


async def _reload(request: web.Request) -> web.Response:
    request.app[REASON].retry()
    return body.reply(ReloadReply(applied=[], needs_restart=[]))


async def _refuse(request: web.Request) -> web.StreamResponse:
    raise NotServing(f"osaurusd is not serving: {request.app[REASON].text}")
