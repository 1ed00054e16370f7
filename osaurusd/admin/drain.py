"""Draining: the daemon finishes its requests and accepts no new ones, so that routers send them to other hosts."""

import asyncio
import time
from pathlib import Path

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge

from osaurusd.admin.routes import get, post
from osaurusd.errors import Draining
from osaurusd.events import EventBus
from osaurusd.http.admission import Admission
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.log import get_logger
from osaurusd.platform.state_file import StateFile
from osaurusd.wire.admin import Route as AdminRoute
from osaurusd.wire.drain import DrainRequest, DrainStatus
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

VERSION = 1


class _State(msgspec.Struct, kw_only=True):
    """The file's content: when draining began, in Unix seconds."""

    version: int = VERSION
    draining_since: float | None = None


class Drain:
    """Whether the daemon drains, remembered across restarts: a host that was taken out of service stays out.

    Args:
        file: an unreadable file is moved aside and reported in `fault`; the daemon then accepts requests.
        admission: is closed while the daemon drains.
        bus: publishes the changes.
        registry: gets the gauge.
    """

    def __init__(self, file: Path, admission: Admission, bus: EventBus, registry: CollectorRegistry) -> None:
        self._file = StateFile(file, _State())
        self._admission = admission
        self._bus = bus
        self._since = self._file.read().draining_since
        self._waiting: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.fault = self._file.fault
        gauge = Gauge("osaurus_draining", "1 while the daemon accepts no new requests.", registry=registry)
        gauge.set_function(lambda: float(self._since is not None))
        if self._since is not None:
            log.warning("draining since before the start; new requests are rejected", since=self._since)
            admission.close(_rejection)

    @property
    def status(self) -> DrainStatus:
        return DrainStatus(draining=self._since is not None, since=self._since, requests=self._admission.requests)

    @property
    def routes(self) -> list[Route]:
        return [get(AdminRoute.DRAIN, self.show), post(AdminRoute.DRAIN, self.change)]

    async def show(self, _: web.Request) -> web.Response:
        return json_response(self.status)

    async def change(self, request: web.Request) -> web.Response:
        """Start or end draining. Without effect if nothing changes."""
        wanted = (await read_json(request, DrainRequest)).draining
        async with self._lock:
            if wanted != self.status.draining:
                since = time.time() if wanted else None
                self._apply(since)
                await self._save(since)
        return json_response(self.status)

    async def _save(self, since: float | None) -> None:
        """Save the state. A full disk must not keep a host from being taken out of service."""
        try:
            await asyncio.to_thread(self._file.write, _State(draining_since=since))
        except OSError as error:
            log.warning("cannot save whether the daemon drains; a restart forgets it", reason=str(error))

    def _apply(self, since: float | None) -> None:
        self._since = since
        if self._waiting is not None:
            self._waiting.cancel()
        if since is None:
            self._admission.reopen(_rejection)
            log.info("accepting requests again")
            self._bus.publish(EventKind.DRAIN_ENDED)
            return
        self._admission.close(_rejection)
        log.info("draining", requests=self._admission.requests)
        self._bus.publish(EventKind.DRAINING)
        self._waiting = asyncio.create_task(self._report_drained())

    async def _report_drained(self) -> None:
        await self._admission.wait_until_unused()
        log.info("drained")
        self._bus.publish(EventKind.DRAINED)


def _rejection() -> Draining:
    return Draining(
        "the daemon is draining and accepts no new requests; send the request to another host, or retry later"
    )
