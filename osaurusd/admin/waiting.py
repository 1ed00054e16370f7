"""The Unix socket of a daemon that cannot serve yet: it says why, and everything else is refused with that reason."""

import contextlib
import os
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.admin import keys, views
from osaurusd.admin.context import DAEMON
from osaurusd.errors import ConfigError, NotServing
from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.pool.report import Budget
from osaurusd.wire.admin import ReloadReply, ShutdownReply
from osaurusd.wire.admin import Route as Path
from osaurusd.wire.keys import KeyRoute


class Reason:
    """Why the daemon does not serve; whoever waits changes it."""

    def __init__(self, retry: Callable[[], None]) -> None:
        self.text = ""
        self.retry = retry


REASON = web.AppKey("REASON", Reason)


@web.middleware
async def retry_with_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A key may be what is missing."""
    answer = await handler(request)
    if (request.method, request.path) == (hdrs.METH_POST, KeyRoute.KEYS):
        with contextlib.suppress(ConfigError):
            request.app[REASON].retry()
    return answer


async def _status(request: web.Request) -> web.Response:
    faults = [request.app[REASON].text]
    nothing = Budget(total_bytes=0, used_bytes=0)
    return json_response(views.status(request.app[DAEMON], None, [], [], nothing, faults, serving=False))


async def _shutdown(request: web.Request) -> web.Response:
    request.app[DAEMON].stop()
    return json_response(ShutdownReply(pid=os.getpid()), status=202)


async def _reload(request: web.Request) -> web.Response:
    request.app[REASON].retry()
    return json_response(ReloadReply(applied=[], needs_restart=[]))


async def _refuse(request: web.Request) -> web.StreamResponse:
    raise NotServing(f"osaurusd is not serving: {request.app[REASON].text}")


ROUTES = RouteGroup(
    "admin",
    [
        *keys.ROUTES,
        Route("GET", Path.STATUS, _status),
        Route("POST", Path.SHUTDOWN, _shutdown),
        Route("POST", Path.RELOAD, _reload),
        Route("*", "/{path:.*}", _refuse),
    ],
    error_response,
)
