"""The daemon itself: status, diagnosis, reload and shutdown."""

import asyncio
import functools
import os
import resource
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
from aiohttp import web

from osaurusd import __version__
from osaurusd.admin import views
from osaurusd.admin.drain import Drain
from osaurusd.admin.routes import get, post
from osaurusd.config import ConfigChange, LiveConfig
from osaurusd.hosts.service import Hosts
from osaurusd.http.auth import AuthPolicy
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route
from osaurusd.log import LogFile
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import hub_cache
from osaurusd.pool.config import find_blas
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.wire import admin as wire
from osaurusd.wire.admin import (
    API_VERSION,
    Availability,
    DaemonStatus,
    ReloadReply,
    ShutdownReply,
    WorkerInfo,
    WorkerState,
)
from osaurusd.wire.diagnosis import Diagnosis, Installation, StoreProbe
from osaurusd.wire.installation import installation
from osaurusd.wire.paths import Paths

PROBE_SECONDS = 5.0
"""How long the diagnosis waits for a model folder."""


class DaemonInfo(msgspec.Struct, frozen=True, dict=True):
    """The identity of the running daemon.

    Attributes:
        paths: where it keeps its files.
        instance: random id of this run.
        started_at: on the monotonic clock, in seconds.
    """

    paths: Paths
    instance: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    started_at: float = msgspec.field(default_factory=time.monotonic)

    @functools.cached_property
    def installation(self) -> Installation:
        """Versions when this is first used, which takes a while: soon after the start.

        A later upgrade changes the files, but not the running process.
        """
        return installation()

    async def read_installation(self) -> Installation:
        """Return `installation` without blocking."""
        return await asyncio.to_thread(lambda: self.installation)

    def status(self, faults: list[str]) -> DaemonStatus:
        """Return the status of a daemon that does not serve because of these faults."""
        return DaemonStatus(
            version=__version__,
            api_version=API_VERSION,
            pid=os.getpid(),
            instance=self.instance,
            uptime_seconds=time.monotonic() - self.started_at,
            endpoints=[],
            socket=str(self.paths.socket),
            config_file=str(self.paths.config_file),
            log_file=str(self.paths.log_file),
            models_dir=str(self.paths.models_dir),
            default_model=None,
            models_available=0,
            workers=[],
            faults=faults,
            serving=False,
        )


class DaemonApi:
    """Handlers for the daemon itself.

    Args:
        info: the identity of the daemon.
        endpoints: URLs that TCP clients use.
        config: the configuration in force.
        auth: the access policy of the TCP ports.
        catalog, pool, pins: the models.
        leased: returns the workers that run as ranks of other hosts' models.
        drain: whether the daemon accepts requests.
        hosts: the paired hosts.
        log_file: its fault is part of the status.
        startup_faults: problems found at the start, one line each.
        reload: reads the configuration again and applies it.
        shut_down: requests the shutdown of the daemon.
    """

    def __init__(
        self,
        info: DaemonInfo,
        *,
        endpoints: Sequence[str],
        config: LiveConfig,
        auth: AuthPolicy,
        catalog: Catalog,
        pool: Pool,
        leased: Callable[[], list[WorkerInfo]],
        pins: Pins,
        drain: Drain,
        hosts: Hosts,
        log_file: LogFile,
        startup_faults: Sequence[str],
        reload: Callable[[], ConfigChange],
        shut_down: Callable[[], None],
    ) -> None:
        self._info = info
        self._endpoints = endpoints
        self._config = config
        self._auth = auth
        self._catalog = catalog
        self._pool = pool
        self._leased = leased
        self._pins = pins
        self._drain = drain
        self._hosts = hosts
        self._log_file = log_file
        self._startup_faults = startup_faults
        self._reload = reload
        self._shut_down = shut_down

    @property
    def routes(self) -> list[Route]:
        return [
            get(wire.Route.STATUS, self.show_status),
            get(wire.Route.DIAGNOSIS, self.diagnose),
            post(wire.Route.RELOAD, self.reload),
            post(wire.Route.SHUTDOWN, self.shut_down),
        ]

    async def show_status(self, _: web.Request) -> web.Response:
        records = await self._catalog.records()
        workers = self._pool.snapshot()
        config = self._config.current
        budget = self._pool.budget
        status = msgspec.structs.replace(
            self._info.status(list(self._faults(records, workers))),
            endpoints=list(self._endpoints),
            default_model=config.default_model,
            models_available=sum(record.state is Availability.AVAILABLE for record in records),
            workers=[*map(views.worker_info, workers), *self._leased()],
            memory_budget_bytes=budget.total_bytes,
            memory_used_bytes=budget.used_bytes,
            serving=True,
            protection=self._auth.protection(config.server),
            drain=self._drain.status,
        )
        return json_response(status)

    async def diagnose(self, _: web.Request) -> web.Response:
        """Report what the daemon sees; the CLI in a terminal may have other permissions."""
        config = self._config.current
        stores = [
            *(_probe(path) for path in (self._info.paths.models_dir, hub_cache())),
            *(_probe(Path(root), required=True) for root in config.models.roots),
        ]
        blas_library = await asyncio.to_thread(find_blas, config.worker.blas)
        open_files = await asyncio.to_thread(lambda: psutil.Process().num_fds())
        return json_response(
            Diagnosis(
                installation=await self._info.read_installation(),
                stores=list(await asyncio.gather(*stores)),
                blas=str(blas_library) if blas_library else None,
                open_files=open_files,
                open_files_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                tasks=_count_tasks(),
                vision_refusals={
                    record.name: record.vision_refusal
                    for record in await self._catalog.records()
                    if record.vision_refusal
                },
                hosts=await self._hosts.diagnose(),
            )
        )

    async def reload(self, _: web.Request) -> web.Response:
        change = self._reload()
        return json_response(ReloadReply(applied=change.applied, needs_restart=change.needs_restart))

    async def shut_down(self, _: web.Request) -> web.Response:
        self._shut_down()
        return json_response(ShutdownReply(pid=os.getpid()), status=202)

    def _faults(self, records: Sequence[ModelRecord], workers: Sequence[WorkerSnapshot]) -> Iterator[str]:
        """Current problems, one line each."""
        yield from self._auth.faults(self._config.current.server)
        yield from self._catalog.faults
        yield from self._startup_faults
        yield from self._hosts.faults
        if self._log_file.fault is not None:
            yield self._log_file.fault
        available = {record.repo for record in records if record.state is Availability.AVAILABLE}
        for repo in self._pins.all:
            if repo not in available:
                yield f'pinned model "{repo}" is not on disk; pull it, or remove the pin with "osaurusctl unpin {repo}"'
        for worker in workers:
            if worker.state is WorkerState.FAILED and worker.last_exit:
                yield f"{worker.name} failed: {worker.last_exit.splitlines()[0]}"


def _count_tasks() -> dict[str, int]:
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return dict(Counter(getattr(coroutine, "__qualname__", repr(coroutine)) for coroutine in coroutines))


async def _probe(path: Path, *, required: bool = False) -> StoreProbe:
    """Check whether a model folder can be read, without waiting long for it. `required`: whether it must exist."""
    try:
        # In a thread: a privacy prompt or a network volume can block for hours.
        await asyncio.wait_for(asyncio.to_thread(_read_one_entry, path), PROBE_SECONDS)
    except FileNotFoundError:
        if required:
            return StoreProbe(path=str(path), readable=False, reason="does not exist", missing=True)
        # Normal before the first download.
        return StoreProbe(path=str(path), readable=True, reason="does not exist yet")
    except TimeoutError:
        return StoreProbe(path=str(path), readable=False, reason=f"no response within {PROBE_SECONDS:g} s")
    except OSError as error:
        return StoreProbe(path=str(path), readable=False, reason=error.strerror or str(error))
    return StoreProbe(path=str(path), readable=True)


def _read_one_entry(path: Path) -> None:
    next(path.expanduser().iterdir(), None)
