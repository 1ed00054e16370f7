"""The composition root: builds everything from the configuration, serves, and takes it down again in order."""

import asyncio
import contextlib
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

from osaurusd import __version__, log
from osaurusd.admin import context
from osaurusd.admin.routes import add_routes as add_admin_routes
from osaurusd.catalog.catalog import Catalog
from osaurusd.catalog.imports import Imports
from osaurusd.catalog.pulls import Pulls
from osaurusd.catalog.registry import Registry
from osaurusd.catalog.roots import hub_cache
from osaurusd.config import Config
from osaurusd.openai.routes import add_routes as add_client_routes
from osaurusd.pool import blas
from osaurusd.pool.pool import Pool, Share
from osaurusd.pool.process import Launch
from osaurusd.web import errors, guard, keys, listen
from osaurusd.web.app import make_app
from osaurusd.web.settings import Settings
from osaurusd.wire.paths import Paths

logger = log.get_logger(__name__)

# What one worker may use of the machine's memory, and keep of it in freed buffers.
WORKER_MEMORY_SHARE = 0.7
WORKER_CACHE_SHARE = 0.05
# What one worker keeps of earlier prompts, unless the configuration says.
PREFIX_CACHE_SHARE = 0.125

# Handlers have nothing left to wait for once the pool is closed; this only bounds a client that does not read.
HANDLER_END_SECONDS = 2.0


def run(read: Callable[[], Config], paths: Paths) -> None:
    """Serve in the foreground until SIGTERM, SIGINT or a request to shut down.

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

    config = checked()
    with listen.locked_home(paths.lock):
        for directory in (paths.log_dir, paths.state_dir):
            listen.make_private_dir(directory)
        # Often a link to a larger volume, so not held to the same rules.
        paths.models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.configured(config.log.level, paths.log_file, _console()):
            asyncio.run(_serve(Settings(config, checked), paths))


def _console() -> TextIO | None:
    """Standard error, unless whoever started us keeps that for crashes."""
    return None if "OSAURUS_SUPERVISED" in os.environ else sys.stderr


async def _serve(settings: Settings, paths: Paths) -> None:
    server = settings.config.server
    registry = Registry(paths.state_dir / "names.json")
    catalog = Catalog(paths.models_dir, hub_cache(), registry, _extra_roots(settings.config))
    imports = Imports(catalog)
    pulls = _pulls(settings, catalog, paths)
    pool = Pool(_launch(settings.config), _share(settings.config))
    _follow(settings, catalog, pool)
    stop = _Stop()
    await asyncio.to_thread(imports.sweep)
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(door) for door in listen.tcp(server.host, server.port)]
        admin_door = stack.enter_context(listen.unix(paths.socket))
        endpoints = [listen.url(door) for door in doors]
        daemon = context.Daemon(uuid.uuid4().hex, time.monotonic(), endpoints, paths, stop.soon.set)
        tcp_app = _client_app(settings, catalog, pool)
        guard.guard_tcp(tcp_app, lambda: settings.config.server)
        socket_app = _client_app(settings, catalog, pool)
        guard.guard_socket(socket_app, os.geteuid())
        add_admin_routes(socket_app)
        socket_app[context.DAEMON] = daemon
        socket_app[context.IMPORTS] = imports
        socket_app[context.PULLS] = pulls
        runners = [await _open(tcp_app, doors), await _open(socket_app, [admin_door])]
        logger.info("serving", version=__version__, pid=os.getpid(), endpoints=endpoints, socket=str(paths.socket))
        _warn_if_exposed(doors)
        warming = asyncio.create_task(catalog.refresh())
        pulls.start()
        await stop.soon.wait()
        warming.cancel()
        await pulls.close()
        await _close(runners, pool, stop, settings.config.server.shutdown_grace_seconds)


def _follow(settings: Settings, catalog: Catalog, pool: Pool) -> None:
    """Have those who keep something of the configuration told when it changes."""
    settings.on_change(lambda config: log.set_level(config.log.level))
    settings.on_change(lambda config: pool.configure(_launch(config), _share(config)))
    settings.on_change(lambda config: catalog.set_extra(_extra_roots(config)))


def _pulls(settings: Settings, catalog: Catalog, paths: Paths) -> Pulls:
    return Pulls(
        catalog,
        paths.state_dir / "pulls.json",
        options=lambda: settings.config.pulls,
        body=lambda error: errors.error_body(errors.known(error)),
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


def _client_app(settings: Settings, catalog: Catalog, pool: Pool) -> web.Application:
    app = make_app(settings.config)
    app[keys.SETTINGS] = settings
    app[keys.CATALOG] = catalog
    app[keys.POOL] = pool
    add_client_routes(app)
    return app


async def _open(app: web.Application, listeners: list[socket.socket]) -> web.AppRunner:
    # handler_cancellation: a client that hangs up ends its handler, and with it the generation.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=HANDLER_END_SECONDS, handle_signals=False
    )
    await runner.setup()
    for listener in listeners:
        await web.SockSite(runner, listener).start()
    return runner


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
