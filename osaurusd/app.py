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
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from aiohttp import web

from osaurusd import __version__, log, origins
from osaurusd.admin import context
from osaurusd.admin.antechamber import Antechamber
from osaurusd.admin.routes import add_routes as add_admin_routes
from osaurusd.config import Config, Log
from osaurusd.downloads.manager import Pulls
from osaurusd.errors import ConfigError
from osaurusd.events import Bus
from osaurusd.http import auth, errors, guard, keys, listen, metrics, tls
from osaurusd.http.app import make_app, open_app
from osaurusd.http.exposure import Exposure
from osaurusd.http.keyring import Keyring
from osaurusd.http.limits import Gate
from osaurusd.http.settings import Settings
from osaurusd.imports.manager import Imports
from osaurusd.metrics import Counter
from osaurusd.models.catalog import Catalog
from osaurusd.models.registry import Registry
from osaurusd.models.roots import hub_cache
from osaurusd.platform import activation, service_manager
from osaurusd.platform.power import Awake
from osaurusd.pool import blas, terms
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.routes import add_routes as add_client_routes
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
        tls.of(config.server)
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
    with listen.locked_home(paths.lock, _say_waiting if patient else None):
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
    opened = activation.inherited()
    with contextlib.ExitStack() as stack:
        admin_door = opened.admin or stack.enter_context(listen.unix(paths.socket))
        daemon = context.Daemon(uuid.uuid4().hex, time.monotonic(), [], paths, stop.soon.set, installation())
        watchdog = asyncio.create_task(service_manager.feed_watchdog())
        keyring = Keyring(paths.state_dir / "keys.json")
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
    keyring: Keyring,
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
    requests = metrics.make_counter()
    _follow(settings, catalog, pool)
    await asyncio.to_thread(imports.sweep)
    exposure = Exposure([door.getsockname()[0] for door in doors], keyring)
    secured = tls.of(settings.config.server)
    _watch_over(settings, exposure, secured)
    gate = Gate(lambda: settings.config)
    tcp_app, socket_app = (_client_app(settings, catalog, pool, requests, gate) for _ in range(2))
    guard.guard_tcp(tcp_app, lambda: settings.config.server, exposure.names)
    auth.ask_for_keys(tcp_app, keyring, lambda request: exposure.asks(settings.config.server, request))
    guard.guard_socket(socket_app, os.geteuid())
    add_admin_routes(socket_app)
    found = (registry.fault, pins.fault, pulls.fault, keyring.fault, secured.fault if secured else None)
    faults = [fault for fault in found if fault is not None]
    endpoints = [listen.url(door, tls=secured is not None) for door in doors]
    daemon = dataclasses.replace(daemon, endpoints=endpoints, faults=faults)
    socket_app[context.DAEMON] = daemon
    socket_app[context.EXPOSURE] = exposure
    socket_app[context.KEYRING] = keyring
    socket_app[context.IMPORTS] = imports
    socket_app[context.PINS] = pins
    socket_app[context.PULLS] = pulls
    runners = [await open_app(tcp_app, doors, secured), await open_app(socket_app, [admin_door])]
    _announce(daemon)
    _warn_if_open(exposure, settings.config)
    _warn_if_anybody_may_call(settings.config)
    warming = asyncio.create_task(_warm_up(catalog, pool, pins))
    pulls.start()
    await stop.soon.wait()
    service_manager.notify("STOPPING=1", "STATUS=finishing running requests")
    warming.cancel()
    await pulls.close()
    await _close(runners, pool, stop, settings.config.server.shutdown_grace_seconds)


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


def _watch_over(settings: Settings, exposure: Exposure, secured: tls.Tls | None) -> None:
    """Have a configuration refused that would shut everybody out or has no usable certificate; warn of an open one."""
    settings.before_change(lambda config: exposure.check(config.server))
    settings.on_change(lambda config: _warn_if_open(exposure, config))
    if secured is not None:
        settings.before_change(lambda config: secured.renew(config.server))


def _warn_if_open(exposure: Exposure, config: Config) -> None:
    if exposure.exposed and not exposure.needs_keys(config.server):
        logger.warning("other machines can connect, and nobody is asked for an API key")


def _follow(settings: Settings, catalog: Catalog, pool: Pool) -> None:
    """Have those who keep something of the configuration told when it changes."""
    settings.on_change(lambda config: log.set_level(config.log.level))
    settings.on_change(lambda config: pool.configure(terms.of(config)))
    settings.on_change(lambda config: catalog.set_extra(_extra_roots(config)))
    settings.on_change(_warn_if_anybody_may_call)


def _pulls(settings: Settings, catalog: Catalog, paths: Paths, bus: Bus, awake: Awake) -> Pulls:
    return Pulls(
        catalog,
        paths.state_dir / "pulls.json",
        options=lambda: settings.config.pulls,
        body=lambda error: errors.error_body(errors.known(error)),
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


def _client_app(settings: Settings, catalog: Catalog, pool: Pool, requests: Counter, gate: Gate) -> web.Application:
    app = make_app(settings.config, gate)
    app[keys.SETTINGS] = settings
    app[keys.CATALOG] = catalog
    app[keys.POOL] = pool
    add_client_routes(app)
    metrics.add_route(app, requests)
    return app


async def _close(runners: list[web.AppRunner], pool: Pool, stop: _Stop, grace: float) -> None:
    """Take no more, let what runs finish within the grace period, end the workers, hang up."""
    logger.info("shutting down", grace_seconds=grace)
    for runner in runners:
        for site in list(runner.sites):
            await site.stop()
    draining = asyncio.create_task(pool.drain(grace))
    hurried = asyncio.create_task(stop.now.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, hurried):
        task.cancel()
    await pool.close()
    for runner in runners:
        await runner.cleanup()
    logger.info("stopped")


def _warn_if_anybody_may_call(config: Config) -> None:
    if origins.is_allowed(origins.NULL, config.server.allowed_origins):
        logger.warning("`server.allowed_origins` has `null`, which any web page can make its origin")
