"""The Unix socket of a daemon that cannot serve yet: it says why, and everything else is refused with that reason."""

import contextlib
import os
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.admin import keys, views
from osaurusd.admin.context import DAEMON
from osaurusd.admin.routes import add_version_check
from osaurusd.errors import ConfigError, NotServing
from osaurusd.http import body
from osaurusd.pool.report import Budget
from osaurusd.wire.admin import ReloadReply, Route, ShutdownReply
from osaurusd.wire.keys import KeyRoute


class Reason:
    """Why the daemon does not serve; whoever waits changes it."""

    def __init__(self, retry: Callable[[], None]) -> None:
        self.text = ""
        self.retry = retry


REASON = web.AppKey("REASON", Reason)


def add_routes(app: web.Application) -> None:
    """Mount what such a daemon answers; `DAEMON`, `KEYRING` and `REASON` must be in the application."""
    add_version_check(app)
    app.middlewares.append(_retry_with_key)
    keys.add_routes(app)
    app.router.add_get(Route.STATUS, _status)
    app.router.add_post(Route.SHUTDOWN, _shutdown)
    app.router.add_post(Route.RELOAD, _reload)
    app.router.add_route("*", "/{path:.*}", _refuse)


@web.middleware
async def _retry_with_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A key may be what is missing."""
    answer = await handler(request)
    if (request.method, request.path) == (hdrs.METH_POST, KeyRoute.KEYS):
        with contextlib.suppress(ConfigError):
            request.app[REASON].retry()
    return answer


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
