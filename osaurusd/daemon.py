"""The composition root: builds everything from the configuration, serves, and takes it down again in order."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import psutil
from aiohttp import web

from osaurusd import __version__, log, supervision
from osaurusd.admin import context
from osaurusd.admin.antechamber import Antechamber
from osaurusd.admin.routes import add_routes as add_admin_routes
from osaurusd.catalog.catalog import Catalog
from osaurusd.catalog.imports import Imports
from osaurusd.catalog.registry import Registry
from osaurusd.catalog.roots import hub_cache
from osaurusd.config import Config, Log
from osaurusd.errors import ConfigError
from osaurusd.openai.routes import add_routes as add_client_routes
from osaurusd.pool import blas
from osaurusd.pool.pool import Pool, Share
from osaurusd.pool.process import Launch
from osaurusd.web import activation, guard, keys, listen
from osaurusd.web.app import make_app, open_app
from osaurusd.web.settings import Settings
from osaurusd.wire.installation import installation
from osaurusd.wire.paths import Paths

logger = log.get_logger(__name__)

# What one worker may use of the machine's memory, and keep of it in freed buffers.
WORKER_MEMORY_SHARE = 0.7
WORKER_CACHE_SHARE = 0.05
# What one worker keeps of earlier prompts, unless the configuration says.
PREFIX_CACHE_SHARE = 0.125


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
        return config

    supervision.raise_file_limit()
    if supervision.supervised():
        for descriptor in (1, 2):
            supervision.bound_crash_log(descriptor)
        supervision.persist(lambda: _run(checked, paths, patient=True))
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
    supervision.say(f"{reason}; waiting for its end")
    supervision.notify(f"STATUS={reason}")


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
        watchdog = asyncio.create_task(supervision.feed_watchdog())
        antechamber = Antechamber(daemon, admin_door, read, opened.http)
        try:
            ready = await (antechamber.wait(stop.soon) if patient else antechamber.enter())
            if ready is not None:
                settings, doors = ready
                stack.callback(_close_all, doors)
                log.set_level(settings.config.log.level)
                here = dataclasses.replace(daemon, endpoints=[listen.url(door) for door in doors])
                await _serve(settings, here, doors, admin_door, stop)
        finally:
            supervision.notify("STOPPING=1", "STATUS=stopping")
            watchdog.cancel()


def _close_all(doors: list[socket.socket]) -> None:
    for door in doors:
        door.close()


async def _serve(
    settings: Settings,
    daemon: context.Daemon,
    doors: list[socket.socket],
    admin_door: socket.socket,
    stop: "_Stop",
) -> None:
    paths = daemon.paths
    registry = Registry(paths.state_dir / "names.json")
    catalog = Catalog(paths.models_dir, hub_cache(), registry, _extra_roots(settings.config))
    imports = Imports(catalog)
    pool = Pool(_launch(settings.config), _share(settings.config))
    _follow(settings, catalog, pool)
    await asyncio.to_thread(imports.sweep)
    tcp_app = _client_app(settings, catalog, pool)
    guard.guard_tcp(tcp_app, lambda: settings.config.server)
    socket_app = _client_app(settings, catalog, pool)
    guard.guard_socket(socket_app, os.geteuid())
    add_admin_routes(socket_app)
    socket_app[context.DAEMON] = daemon
    socket_app[context.IMPORTS] = imports
    runners = [await open_app(tcp_app, doors), await open_app(socket_app, [admin_door])]
    endpoints = daemon.endpoints
    logger.info("serving", version=__version__, pid=os.getpid(), endpoints=endpoints, socket=str(paths.socket))
    supervision.notify("READY=1", f"STATUS=serving on {', '.join(endpoints)}")
    _warn_if_exposed(doors)
    warming = asyncio.create_task(catalog.refresh())
    await stop.soon.wait()
    supervision.notify("STOPPING=1", "STATUS=finishing running requests")
    warming.cancel()
    await _close(runners, pool, stop, settings.config.server.shutdown_grace_seconds)


def _follow(settings: Settings, catalog: Catalog, pool: Pool) -> None:
    """Have those who keep something of the configuration told when it changes."""
    settings.on_change(lambda config: log.set_level(config.log.level))
    settings.on_change(lambda config: pool.configure(_launch(config), _share(config)))
    settings.on_change(lambda config: catalog.set_extra(_extra_roots(config)))


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


def _client_app(settings: Settings, catalog: Catalog, pool: Pool) -> web.Application:
    app = make_app(settings.config)
    app[keys.SETTINGS] = settings
    app[keys.CATALOG] = catalog
    app[keys.POOL] = pool
    add_client_routes(app)
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


def _launch(config: Config) -> Launch:
    preload = blas.find(config.worker.blas)
    logger.info("BLAS for workers", preloaded=str(preload) if preload else None)
    return Launch(
        preload=preload,
        load_timeout=config.worker.load_timeout_seconds,
        stop_grace=config.worker.stop_grace_seconds,
    )


def _share(config: Config) -> Share:
    physical = psutil.virtual_memory().total
    worker = config.worker
    kept = worker.prefix_cache_bytes
    return Share(
        dequantize=worker.dequantize,
        prefix_cache_bytes=int(physical * PREFIX_CACHE_SHARE) if kept is None else kept,
        max_waiting=worker.max_waiting,
        stall_seconds=worker.stall_seconds,
        memory_limit_bytes=int(physical * WORKER_MEMORY_SHARE),
        cache_limit_bytes=int(physical * WORKER_CACHE_SHARE),
    )


def _warn_if_exposed(doors: list[socket.socket]) -> None:
    for door in doors:
        address = door.getsockname()[0]
        if not ipaddress.ip_address(address).is_loopback:
            logger.warning("listening beyond this machine, and there is no authentication", address=address)
