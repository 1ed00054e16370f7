"""The admin API under `/v0/`, on the Unix socket only: what `osaurusctl` asks for."""

import os

from aiohttp import web
from aiohttp.typedefs import Handler

from osaurusd import __version__, log
from osaurusd.admin import diagnosis, imports, pulls, residency, store, views
from osaurusd.admin import keys as api_keys
from osaurusd.admin.context import DAEMON, EXPOSURE, PINS
from osaurusd.errors import VersionMismatch
from osaurusd.http import body, keys
from osaurusd.wire.admin import API_HEADER, API_VERSION, VERSION_HEADER, ReloadReply, Route, ShutdownReply

# What it takes to see and end a daemon of another version.
ANY_VERSION = frozenset({Route.STATUS, Route.SHUTDOWN})


def add_routes(app: web.Application) -> None:
    """Mount the admin API."""
    add_version_check(app)
    app.router.add_get(Route.STATUS, _status)
    app.router.add_get(Route.DIAGNOSIS, diagnosis.show)
    app.router.add_get(Route.MODELS, _models)
    app.router.add_get(Route.WORKERS, residency.workers)
    app.router.add_post(Route.LOAD, residency.load)
    app.router.add_post(Route.UNLOAD, residency.unload)
    app.router.add_get(Route.PINS, residency.pins)
    app.router.add_post(Route.PINS, residency.pin)
    app.router.add_get(Route.EVENTS, residency.events)
    app.router.add_post(Route.IMPORTS, imports.create)
    pulls.add_routes(app)
    api_keys.add_routes(app)
    app.router.add_post(Route.DETAILS, store.details)
    app.router.add_post(Route.REMOVE, store.remove)
    app.router.add_post(Route.VERIFY, store.verify)
    app.router.add_get(Route.ALIASES, store.aliases)
    app.router.add_post(Route.ALIASES, store.alias)
    app.router.add_post(Route.PRUNE, store.prune)
    app.router.add_post(Route.RELOAD, _reload)
    app.router.add_post(Route.SHUTDOWN, _shutdown)


def add_version_check(app: web.Application) -> None:
    """Refuse requests of another API version, and say in every answer which one is spoken here."""
    app.middlewares.append(_check_version)
    app.on_response_prepare.append(_tell_version)


@web.middleware
async def _check_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    theirs = request.headers.get(API_HEADER)
    if request.path.startswith("/v0/") and request.path not in ANY_VERSION and theirs != str(API_VERSION):
        raise VersionMismatch(
            f"this daemon ({__version__}) speaks admin API {API_VERSION}, and the request {theirs or 'names none'}; "
            "use an osaurusctl of the same version, or restart the daemon after an upgrade"
        )
    return await handler(request)


async def _tell_version(_: web.Request, response: web.StreamResponse) -> None:
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
    return body.reply(
        views.status(daemon, config.default_model, records, reports, pool.budget, faults, protection=protection)
    )


async def _models(request: web.Request) -> web.Response:
    await request.app[keys.CATALOG].refresh()
    reports = request.app[keys.POOL].report()
    records = await request.app[keys.CATALOG].records()
    return body.reply(pulls.with_partials(request, [views.model(record, reports) for record in records]))


async def _reload(request: web.Request) -> web.Response:
    applied, needs_restart = request.app[keys.SETTINGS].reload()
    return body.reply(ReloadReply(applied=applied, needs_restart=needs_restart))


async def _shutdown(request: web.Request) -> web.Response:
    request.app[DAEMON].stop()
    return body.reply(ShutdownReply(pid=os.getpid()), status=202)
