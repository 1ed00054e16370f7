"""Which models are in memory: load, unload, pins, and what happens to them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable

from aiohttp import web

from osaurusd.admin import lines, views
from osaurusd.admin.context import PINS
from osaurusd.errors import ModelNotFound
from osaurusd.events import Bus
from osaurusd.http import body, keys
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pins import Pins
from osaurusd.wire.admin import LoadRequest, ModelState, UnloadReply, UnloadRequest
from osaurusd.wire.residency import Event, PinReply, PinRequest


async def workers(request: web.Request) -> web.Response:
    """All workers."""
    return body.reply([views.worker(report) for report in request.app[keys.POOL].report()])


async def load(request: web.Request) -> web.Response:
    """Load a model and tell how it is."""
    order = await body.read(request, LoadRequest)
    record = await request.app[keys.CATALOG].find(order.model)
    report = await request.app[keys.POOL].load(record, order.keep_alive_seconds)
    if report is None:
        raise ModelNotFound(f"`{record.name}` was unloaded again at once", param="model")
    return body.reply(views.worker(report))


async def unload(request: web.Request) -> web.Response:
    """Unload one model, or all; without `force`, all means those that are not pinned."""
    order = await body.read(request, UnloadRequest)
    pool = request.app[keys.POOL]
    reports = pool.report()
    if order.model is not None:
        record = await request.app[keys.CATALOG].find(order.model)
        reports = [report for report in reports if report.key == record.repo]
    elif not order.force:
        reports = [report for report in reports if not report.pinned]
    for report in reports:
        await pool.unload(report.key, force=order.force)
    return body.reply(UnloadReply(unloaded=[report.name for report in reports if report.is_there]))


async def pins(request: web.Request) -> web.Response:
    """All pinned models."""
    return body.reply(await _pinned(request))


async def pin(request: web.Request) -> web.Response:
    """Pin a model, and have it loaded without waiting for that; or let it be evicted again."""
    order = await body.read(request, PinRequest)
    catalog, pool, kept = request.app[keys.CATALOG], request.app[keys.POOL], request.app[PINS]
    if order.pinned:
        record = await catalog.find(order.model)
        pool.pin(record)
        await asyncio.to_thread(kept.add, record.repo)
        pool.bring_up([record])
    elif order.model in kept.all:
        # By its repo, as one is listed that is not on this machine any more.
        pool.unpin(order.model)
        await asyncio.to_thread(kept.remove, order.model)
    else:
        record = await catalog.find_any(order.model)
        pool.unpin(record.repo)
        await asyncio.to_thread(kept.remove, record.repo)
    return body.reply(await _pinned(request))


async def events(request: web.Request) -> web.StreamResponse:
    """What has happened, and with `?follow=1` also what happens from now on, until the client goes away."""
    bus = request.app[keys.POOL].bus
    return await lines.stream(request, _told(bus, follow=request.query.get("follow") == "1"))


def missing_pins(records: Iterable[ModelRecord], pins: Pins) -> list[str]:
    """The pinned models that are not on this machine, a line each."""
    here = {record.repo for record in records if record.state is ModelState.AVAILABLE}
    return [f"{repo} is pinned, but not here; `osaurusctl unpin` forgets it" for repo in pins.all if repo not in here]


async def _pinned(request: web.Request) -> PinReply:
    pool = request.app[keys.POOL]
    records = {record.repo: record.name for record in await request.app[keys.CATALOG].records()}
    names = [records.get(repo, repo) for repo in request.app[PINS].all]
    return PinReply(pinned=names, needs_bytes=pool.pinned_bytes, budget_bytes=pool.budget.total_bytes)


async def _told(bus: Bus, *, follow: bool) -> AsyncGenerator[Event]:
    if not follow:
        for event in bus.past():
            yield event
        return
    async with contextlib.aclosing(bus.listen()) as events:
        async for event in events:
            yield event
