"""The admin API under `/v0/`, on the Unix socket only: what `osaurusctl` asks for."""

import os

from aiohttp import web
from aiohttp.typedefs import Handler

from osaurusd import __version__, log
from osaurusd import app_keys as keys
from osaurusd.admin import diagnosis, imports, pulls, residency, store, views
from osaurusd.admin import keys as api_keys
from osaurusd.admin.context import DAEMON, EXPOSURE, PINS
from osaurusd.errors import VersionMismatch
from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.wire.admin import API_HEADER, API_VERSION, VERSION_HEADER, ReloadReply, ShutdownReply
from osaurusd.wire.admin import Route as Path

# What it takes to see and end a daemon of another version.
ANY_VERSION = frozenset({Path.STATUS, Path.SHUTDOWN})


@web.middleware
async def check_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    theirs = request.headers.get(API_HEADER)
    if request.path.startswith("/v0/") and request.path not in ANY_VERSION and theirs != str(API_VERSION):
        raise VersionMismatch(
            f"this daemon ({__version__}) speaks admin API {API_VERSION}, and the request {theirs or 'names none'}; "
            "use an osaurusctl of the same version, or restart the daemon after an upgrade"
        )
    return await handler(request)


async def add_version_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[API_HEADER] = str(API_VERSION)
    response.headers[VERSION_HEADER] = __version__


async def _status(request: web.Request) -> web.Response:
    catalog = request.app[keys.CATALOG]
    records = await catalog.records()
    config = request.app[keys.SETTINGS].config
    pool, daemon, exposure = request.app[keys.POOL], request.app[DAEMON], request.app[EXPOSURE]
    reports = pool.report()
    missing = residency.missing_pins(records, request.app[PINS])
    exposed = exposure.faults(config.server)
    faults = [*exposed, *catalog.faults, *daemon.faults, *log.faults(), *missing, *views.failures(reports)]
    protection = exposure.protection(config.server)
    return json_response(
        views.status(daemon, config.default_model, records, reports, pool.budget, faults, protection=protection)
    )


async def _models(request: web.Request) -> web.Response:
    await request.app[keys.CATALOG].refresh()
    reports = request.app[keys.POOL].report()
    records = await request.app[keys.CATALOG].records()
    return json_response(pulls.with_partials(request, [views.model(record, reports) for record in records]))


async def _reload(request: web.Request) -> web.Response:
    applied, needs_restart = request.app[keys.SETTINGS].reload()
    return json_response(ReloadReply(applied=applied, needs_restart=needs_restart))


async def _shutdown(request: web.Request) -> web.Response:
    request.app[DAEMON].stop()
    return json_response(ShutdownReply(pid=os.getpid()), status=202)


ROUTES = RouteGroup(
    "admin",
    [
        Route("GET", Path.STATUS, _status),
        Route("GET", Path.DIAGNOSIS, diagnosis.show),
        Route("GET", Path.MODELS, _models),
        Route("GET", Path.WORKERS, residency.workers),
        Route("POST", Path.LOAD, residency.load),
        Route("POST", Path.UNLOAD, residency.unload),
        Route("GET", Path.PINS, residency.pins),
        Route("POST", Path.PINS, residency.pin),
        Route("GET", Path.EVENTS, residency.events),
        Route("POST", Path.IMPORTS, imports.create),
        Route("POST", Path.DETAILS, store.details),
        Route("POST", Path.REMOVE, store.remove),
        Route("POST", Path.VERIFY, store.verify),
        Route("GET", Path.ALIASES, store.aliases),
        Route("POST", Path.ALIASES, store.alias),
        Route("POST", Path.PRUNE, store.prune),
        Route("POST", Path.RELOAD, _reload),
        Route("POST", Path.SHUTDOWN, _shutdown),
        *pulls.ROUTES,
        *api_keys.ROUTES,
    ],
    error_response,
)
