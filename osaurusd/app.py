"""The composition root: builds everything from the configuration, serves, and takes it down again in order."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics

from osaurusd import __version__, app_keys, log, origins
from osaurusd.admin import context
from osaurusd.admin.antechamber import Antechamber
from osaurusd.admin.routes import ROUTES as ADMIN_ROUTES
from osaurusd.admin.routes import add_version_headers, check_version
from osaurusd.config import Config, Log
from osaurusd.downloads.manager import Pulls
from osaurusd.errors import ConfigError
from osaurusd.events import Bus
from osaurusd.http import errors, listen
from osaurusd.http.admission import Admission
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.app import create_app, socket_middlewares
from osaurusd.http.auth import AuthPolicy, require_api_key
from osaurusd.http.cors import Cors, require_json_body
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.server import HttpServer
from osaurusd.http.tls import Tls
from osaurusd.http.trusted_hosts import BoundHosts, trusted_hosts
from osaurusd.imports.manager import Imports
from osaurusd.inference.service import Service
from osaurusd.metrics import Gauge, Labels, render
from osaurusd.models.catalog import Catalog
from osaurusd.models.registry import Registry
from osaurusd.models.roots import hub_cache
from osaurusd.platform import activation, service_manager
from osaurusd.platform.power import Awake
from osaurusd.pool import blas, terms
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.pool.report import WorkerReport
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.settings import Settings
from osaurusd.wire.installation import installation
from osaurusd.wire.paths import Paths

logger = log.get_logger(__name__)


def run(read: Callable[[], Config], paths: Paths) -> None:
    """Serve until SIGTERM, SIGINT or a request to shut down.

    A supervised daemon does not end for want of something: it waits for its home, a usable configuration and its port,
    and says so. In the foreground these are errors.

    Args:
        read: reads the configuration, now and whenever a reload is asked for.
        paths: where everything lies.

    Raises:
        OsaurusError: it cannot start, because the configuration is wrong, the home or the port is taken, or a path is
            not ours.
    """

    def checked() -> Config:
        config = read()
        blas.find(config.worker.blas)
        Tls.from_config(config.server)
        return config

    # Whatever is written is for this user only, whoever started us; before there are threads, which share it.
    os.umask(0o077)
    service_manager.raise_file_limit()
    if service_manager.supervised():
        for descriptor in (1, 2):
            service_manager.bound_crash_log(descriptor)
        service_manager.persist(lambda: _run(checked, paths, patient=True))
    else:
        checked()
        _run(checked, paths, patient=False)


def _run(read: Callable[[], Config], paths: Paths, *, patient: bool) -> None:
    with listen.lock_home(paths.lock, _say_waiting if patient else None):
        for directory in (paths.log_dir, paths.state_dir):
            listen.make_private_dir(directory)
        # Often a link to a larger volume, so not held to the same rules.
        paths.models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.configured(_level(read), paths.log_file, _console()):
            asyncio.run(_live(read, paths, patient=patient))


def _say_waiting(reason: str) -> None:
    service_manager.say(f"{reason}; waiting for its end")
    service_manager.notify(f"STATUS={reason}")


def _level(read: Callable[[], Config]) -> str:
    try:
        return read().log.level
    except ConfigError:
        return Log().level


def _console() -> TextIO | None:
    """Standard error, unless whoever started us keeps that for crashes."""
    return None if "OSAURUS_SUPERVISED" in os.environ else sys.stderr


async def _live(read: Callable[[], Config], paths: Paths, *, patient: bool) -> None:
    stop = _Stop()
    opened = activation.activated_sockets()
    with contextlib.ExitStack() as stack:
        admin_door = opened.admin or stack.enter_context(listen.listen_unix(paths.socket))
        daemon = context.Daemon(uuid.uuid4().hex, time.monotonic(), [], paths, stop.soon.set, installation())
        watchdog = asyncio.create_task(service_manager.feed_watchdog())
        keyring = ApiKeys(paths.state_dir / "keys.json")
        antechamber = Antechamber(daemon, admin_door, read, opened.http, keyring)
        try:
            ready = await (antechamber.wait(stop.soon) if patient else antechamber.enter())
            if ready is not None:
                settings, doors = ready
                stack.callback(_close_all, doors)
                log.set_level(settings.config.log.level)
                await _serve(settings, daemon, doors, admin_door, keyring, stop)
        finally:
            service_manager.notify("STOPPING=1", "STATUS=stopping")
            watchdog.cancel()


def _close_all(doors: list[socket.socket]) -> None:
    for door in doors:
        door.close()


async def _serve(
    settings: Settings,
    daemon: context.Daemon,
    doors: list[socket.socket],
    admin_door: socket.socket,
    keyring: ApiKeys,
    stop: "_Stop",
) -> None:
    paths = daemon.paths
    registry = Registry(paths.state_dir / "names.json")
    catalog = Catalog(paths.models_dir, hub_cache(), registry, _extra_roots(settings.config))
    imports = Imports(catalog)
    pins = Pins(paths.state_dir / "residency.json")
    bus, awake = Bus(), Awake()
    pool = Pool(terms.of(settings.config), bus=bus, awake=awake)
    pulls = _pulls(settings, catalog, paths, bus, awake)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the package has no annotation for it
    metrics_registry = CollectorRegistry()
    http_metrics = HttpMetrics(metrics_registry)
    _follow(settings, catalog, pool)
    await asyncio.to_thread(imports.sweep)
    addresses = [door.getsockname()[0] for door in doors]
    exposure = AuthPolicy(addresses, keyring)
    secured = Tls.from_config(settings.config.server)
    _watch_over(settings, exposure, secured)
    admission = Admission(lambda: settings.config)
    cors = Cors(lambda: settings.config.server)
    metrics_group = RouteGroup(
        "metrics", [Route("GET", "/metrics", _Metrics(http_metrics, pool).show)], errors.error_response
    )
    openai_group = openai_routes(Service(catalog, pool, lambda: settings.config), catalog, lambda: settings.config)
    tcp_app = create_app(
        [openai_group, metrics_group],
        lambda: settings.config,
        admission=admission,
        metrics=http_metrics,
        middlewares=[
            trusted_hosts(lambda: settings.config.server, BoundHosts(addresses)),
            cors.check,
            require_json_body,
            require_api_key(keyring, lambda request: exposure.requires_key(settings.config.server, request)),
        ],
        response_hooks=[cors.add_headers],
    )
    socket_app = create_app(
        [openai_group, metrics_group, ADMIN_ROUTES],
        lambda: settings.config,
        admission=admission,
        metrics=http_metrics,
        middlewares=[*socket_middlewares(os.geteuid()), check_version],
        response_hooks=[add_version_headers],
    )
    for app in (tcp_app, socket_app):
        app[app_keys.SETTINGS] = settings
        app[app_keys.CATALOG] = catalog
        app[app_keys.POOL] = pool
    found = (registry.fault, pins.fault, pulls.fault, keyring.fault, secured.fault if secured else None)
    faults = [fault for fault in found if fault is not None]
    endpoints = [listen.url_of(door, tls=secured is not None) for door in doors]
    daemon = dataclasses.replace(daemon, endpoints=endpoints, faults=faults)
    socket_app[context.DAEMON] = daemon
    socket_app[context.EXPOSURE] = exposure
    socket_app[context.KEYRING] = keyring
    socket_app[context.IMPORTS] = imports
    socket_app[context.PINS] = pins
    socket_app[context.PULLS] = pulls
    servers = [
        HttpServer(app, lambda: settings.config, errors.error_response, http_metrics) for app in (tcp_app, socket_app)
    ]
    await servers[0].start(doors, secured)
    await servers[1].start([admin_door])
    _announce(daemon)
    _warn_if_open(exposure, settings.config)
    _warn_if_anybody_may_call(settings.config)
    warming = asyncio.create_task(_warm_up(catalog, pool, pins))
    pulls.start()
    await stop.soon.wait()
    service_manager.notify("STOPPING=1", "STATUS=finishing running requests")
    warming.cancel()
    await pulls.close()
    await _close(servers, pool, stop, settings.config.server.shutdown_grace_seconds)


def _announce(daemon: context.Daemon) -> None:
    where = {"endpoints": daemon.endpoints, "socket": str(daemon.paths.socket)}
    logger.info("serving", version=__version__, pid=os.getpid(), **where)
    service_manager.notify("READY=1", f"STATUS=serving on {', '.join(daemon.endpoints)}")


async def _warm_up(catalog: Catalog, pool: Pool, pins: Pins) -> None:
    """What the doors need not wait for: look at the disk, and load the pinned models."""
    await catalog.refresh()
    available = {record.repo: record for record in await catalog.available()}
    found = [available[repo] for repo in pins.all if repo in available]
    for record in found:
        pool.pin(record, check=False)
    pool.bring_up(found)


def _watch_over(settings: Settings, exposure: AuthPolicy, secured: Tls | None) -> None:
    """Have a configuration refused that would shut everybody out or has no usable certificate; warn of an open one."""
    settings.add_validator(lambda config: exposure.check(config.server))
    settings.add_listener(lambda config: _warn_if_open(exposure, config))
    if secured is not None:
        settings.add_validator(lambda config: secured.reload(config.server))


def _warn_if_open(exposure: AuthPolicy, config: Config) -> None:
    if exposure.exposed and not exposure.requires_keys(config.server):
        logger.warning("other machines can connect, and nobody is asked for an API key")


def _follow(settings: Settings, catalog: Catalog, pool: Pool) -> None:
    """Have those who keep something of the configuration told when it changes."""
    settings.add_listener(lambda config: log.set_level(config.log.level))
    settings.add_listener(lambda config: pool.configure(terms.of(config)))
    settings.add_listener(lambda config: catalog.set_extra(_extra_roots(config)))
    settings.add_listener(_warn_if_anybody_may_call)


def _pulls(settings: Settings, catalog: Catalog, paths: Paths, bus: Bus, awake: Awake) -> Pulls:
    return Pulls(
        catalog,
        paths.state_dir / "pulls.json",
        options=lambda: settings.config.pulls,
        body=lambda error: errors.error_body(errors.as_osaurus_error(error)),
        bus=bus,
        awake=awake,
    )


def _extra_roots(config: Config) -> list[Path]:
    return [Path(root).expanduser() for root in config.models.roots]


class _Stop:
    """When to stop: soon at the first signal or request, now at a further signal."""

    def __init__(self) -> None:
        self.soon = asyncio.Event()
        self.now = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.soon.is_set():
            self.now.set()
        self.soon.set()


async def _close(servers: list[HttpServer], pool: Pool, stop: _Stop, grace: float) -> None:
    """Take no more, let what runs finish within the grace period, end the workers, hang up."""
    logger.info("shutting down", grace_seconds=grace)
    for server in servers:
        server.stop_accepting()
    draining = asyncio.create_task(pool.drain(grace))
    hurried = asyncio.create_task(stop.now.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, hurried):
        task.cancel()
    await pool.close()
    for server in servers:
        await server.close()
    logger.info("stopped")


def _warn_if_anybody_may_call(config: Config) -> None:
    if origins.is_allowed(origins.NULL, config.server.allowed_origins):
        logger.warning("`server.allowed_origins` has `null`, which any web page can make its origin")


class _Metrics:
    """`GET /metrics`: the metrics of HTTP requests and of the pool."""

    def __init__(self, http: HttpMetrics, pool: Pool) -> None:
        self._http = http
        self._pool = pool

    async def show(self, request: web.Request) -> web.Response:
        """Handle the request."""
        response = await self._http.show(request)
        assert isinstance(response.body, bytes)
        response.body = response.body + render([*self._pool.meters.families(), *_gauges(self._pool)])
        return response


def _gauges(pool: Pool) -> Iterator[Gauge]:
    reports = [report for report in pool.report() if report.is_there or report.waiting]

    def by_model(value: str) -> Iterable[tuple[Labels, float]]:
        return [((report.name,), float(getattr(report, value))) for report in reports]

    yield Gauge("osaurus_requests_in_flight", "Requests being served.", ("model",), lambda: by_model("in_flight"))
    yield Gauge("osaurus_requests_waiting", "Requests that wait for a model.", ("model",), lambda: by_model("waiting"))
    yield Gauge("osaurus_model_memory_bytes", "Memory that MLX holds.", ("model",), lambda: by_model("mlx_bytes"))
    yield Gauge("osaurus_model_limit_bytes", "Memory a model may use.", ("model",), lambda: by_model("limit_bytes"))
    yield Gauge(
        "osaurus_model_state", "1 for the state that a model is in.", ("model", "state"), lambda: _states(reports)
    )
    budget = pool.budget
    yield Gauge("osaurus_memory_budget_bytes", "Memory for models.", (), lambda: [((), budget.total_bytes)])
    yield Gauge("osaurus_memory_used_bytes", "What models hold of it.", (), lambda: [((), budget.used_bytes)])


def _states(reports: Iterable[WorkerReport]) -> list[tuple[Labels, float]]:
    return [((report.name, report.state), 1.0) for report in reports]
