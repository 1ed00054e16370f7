"""Models in memory: load, unload, pins and events."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from aiohttp import web

from osaurusd.admin import views
from osaurusd.admin.routes import get, post
from osaurusd.errors import InvalidRequest, ModelNotFound
from osaurusd.events import EventBus
from osaurusd.groups.distribution import Distribution
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.http.streaming import stream_ndjson
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.wire import admin as wire
from osaurusd.wire.admin import JSON_LINES, LoadRequest, UnloadReply, UnloadRequest, WorkerInfo
from osaurusd.wire.placement import SplitSetting
from osaurusd.wire.residency import Event, PinReply, PinRequest


class ResidencyApi:
    """Handlers for models in memory.

    Args:
        catalog: finds the models.
        pool: loads and unloads them.
        pins: stores which models are pinned.
        bus: publishes model events.
        distribution: where models run.
        leased: returns the workers that run as ranks of other hosts' models.
    """

    def __init__(
        self,
        catalog: Catalog,
        pool: Pool,
        pins: Pins,
        bus: EventBus,
        distribution: Distribution,
        leased: Callable[[], list[WorkerInfo]],
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._pins = pins
        self._bus = bus
        self._distribution = distribution
        self._leased = leased

    @property
    def routes(self) -> list[Route]:
        return [
            get(wire.Route.WORKERS, self.list_workers),
            post(wire.Route.LOAD, self.load),
            post(wire.Route.UNLOAD, self.unload),
            get(wire.Route.PINS, self.list_pins),
            post(wire.Route.PINS, self.pin),
            get(wire.Route.EVENTS, self.stream_events),
        ]

    async def list_workers(self, _: web.Request) -> web.Response:
        return json_response([*map(views.worker_info, self._pool.snapshot()), *self._leased()])

    async def load(self, request: web.Request) -> web.Response:
        """Load a model and return its worker."""
        body = await read_json(request, LoadRequest)
        record = await self._catalog.find(body.model)
        if body.hosts is not None:
            await self._place(record, body.hosts, body.split)
        elif body.split is not None:
            raise InvalidRequest("`split` requires `hosts`", param="split")
        worker = await self._pool.load(record, body.keep_alive_seconds)
        if worker is None:
            raise ModelNotFound(f'model "{record.name}" was unloaded right after the load', param="model")
        return json_response(views.worker_info(worker))

    async def _place(self, record: ModelRecord, hosts: list[str], split: SplitSetting | None) -> None:
        """Have the model run over these hosts.

        Raises:
            OsaurusError: it cannot run over them, or is loaded in another way.
        """
        in_memory = any(worker.key == record.repo and worker.in_memory for worker in self._pool.snapshot())
        if not in_memory:
            await self._distribution.request(record, hosts, split, self._pool.budget.total_bytes)
        elif not self._distribution.is_placed(record, hosts, split):
            raise InvalidRequest(
                f'model "{record.name}" is loaded in another way; run "osaurusctl unload {record.name}" first',
                param="hosts",
            )

    async def unload(self, request: web.Request) -> web.Response:
        """Unload one model, or all of them; without `force`, all means all that are not pinned."""
        body = await read_json(request, UnloadRequest)
        workers = self._pool.snapshot()
        if body.model is not None:
            record = await self._catalog.find(body.model)
            workers = [worker for worker in workers if worker.key == record.repo]
            # The model may have been evicted.
            self._distribution.forget(record.repo)
        elif not body.force:
            workers = [worker for worker in workers if not worker.pinned]
        for worker in workers:
            await self._pool.unload(worker.key, force=body.force)
            self._distribution.forget(worker.key)
        return json_response(UnloadReply(unloaded=[worker.name for worker in workers if worker.in_memory]))

    async def list_pins(self, _: web.Request) -> web.Response:
        return json_response(await self._pin_reply())

    async def pin(self, request: web.Request) -> web.Response:
        """Pin a model and start loading it, or unpin it."""
        body = await read_json(request, PinRequest)
        if body.pinned:
            record = await self._catalog.find(body.model)
            self._pool.pin(record)
            await asyncio.to_thread(self._pins.add, record.repo)
            self._pool.load_in_background([record])
        else:
            # A pinned model that is no longer on disk is listed by its repo.
            is_listed = body.model in self._pins.all
            repo = body.model if is_listed else (await self._catalog.find_any(body.model)).repo
            self._pool.unpin(repo)
            await asyncio.to_thread(self._pins.remove, repo)
        return json_response(await self._pin_reply())

    async def stream_events(self, request: web.Request) -> web.StreamResponse:
        """Send past events, and with `?follow=1` also new ones until the client disconnects."""
        events = self._bus.subscribe() if request.query.get("follow") == "1" else _replay(self._bus)
        return await stream_ndjson(request, events, content_type=JSON_LINES, headers_first=True)

    async def _pin_reply(self) -> PinReply:
        names = {record.repo: record.name for record in await self._catalog.records()}
        return PinReply(
            pinned=[names.get(repo, repo) for repo in self._pins.all],
            needs_bytes=self._pool.pinned_bytes,
            budget_bytes=self._pool.budget.total_bytes,
        )


async def _replay(bus: EventBus) -> AsyncGenerator[Event]:
    for event in bus.history():
        yield event
