"""The model store: details, aliases, removal, verification, leftovers."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

from aiohttp import web

from osaurusd.admin import lines, views
from osaurusd.admin.context import IMPORTS, PINS, PULLS
from osaurusd.errors import Busy, InvalidRequest, OsaurusError
from osaurusd.http import body, errors, keys
from osaurusd.models import facts, store
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pool import Pool
from osaurusd.rpc import messages
from osaurusd.wire.admin import (
    Alias,
    AliasRequest,
    DetailsRequest,
    PruneReply,
    PruneRequest,
    Removed,
    RemoveReply,
    RemoveRequest,
    VerifiedFile,
    VerifyDone,
    VerifyEvent,
    VerifyFailed,
    VerifyProgress,
    VerifyRequest,
)


async def details(request: web.Request) -> web.Response:
    """Everything about one model, one that cannot be served included."""
    order = await body.read(request, DetailsRequest)
    record = await request.app[keys.CATALOG].find_any(order.model)
    gathered = await asyncio.to_thread(facts.gather, record)
    return body.reply(views.details(record, gathered, request.app[keys.POOL].report()))


async def aliases(request: web.Request) -> web.Response:
    """All aliases, with the names of what they mean."""
    records = await request.app[keys.CATALOG].records()
    return body.reply([Alias(alias=alias, target=record.name) for record in records for alias in record.aliases])


async def alias(request: web.Request) -> web.Response:
    """Add an alias, or remove one."""
    order = await body.read(request, AliasRequest)
    catalog = request.app[keys.CATALOG]
    wanted = order.alias.lower()
    if order.target is None:
        target = await asyncio.to_thread(catalog.registry.remove_alias, wanted)
    else:
        record = await catalog.find_any(order.target)
        await asyncio.to_thread(catalog.registry.add_alias, wanted, record.repo)
        target = record.name
    await catalog.refresh()
    return body.reply(Alias(alias=wanted, target=target))


async def remove(request: web.Request) -> web.Response:
    """Remove models from disk, unloaded first; all are looked up and found idle before the first one goes."""
    order = await body.read(request, RemoveRequest)
    catalog, pool = request.app[keys.CATALOG], request.app[keys.POOL]
    records = {record.repo: record for record in [await catalog.find_any(name) for name in order.models]}
    if not order.force:
        _refuse_busy(records, pool)
    removed = []
    for record in records.values():
        if not order.dry_run:
            await pool.unload(record.repo, force=order.force)
        freed = await store.deletion(catalog, record, dry_run=order.dry_run)
        removed.append(Removed(name=record.name, repo=record.repo, bytes=freed))
        if not order.dry_run:
            await asyncio.to_thread(catalog.registry.forget, record.repo)
            await asyncio.to_thread(request.app[PINS].remove, record.repo)
            pool.unpin(record.repo)
    if not order.dry_run:
        await catalog.refresh()
    return body.reply(RemoveReply(removed=removed))


async def verify(request: web.Request) -> web.StreamResponse:
    """Hash a model's files and tell the progress; a client that goes away ends it."""
    order = await body.read(request, VerifyRequest)
    record = await request.app[keys.CATALOG].find_any(order.model)
    if record.escapes:
        raise InvalidRequest(f"nothing of `{record.name}` is read: {record.reason}", param="model")
    return await lines.stream(request, _verification(record))


async def prune(request: web.Request) -> web.Response:
    """Remove our own leftovers, but not those of an import or a pull that runs or waits."""
    order = await body.read(request, PruneRequest)
    catalog, pulls = request.app[keys.CATALOG], request.app[PULLS]
    kept = {str(path) for path in (*request.app[IMPORTS].running, *pulls.in_use())}
    found = await store.leftovers(catalog.models_dir, catalog.hub)
    leftovers = [leftover for leftover in found if leftover.path not in kept]
    if not order.dry_run:
        for leftover in leftovers:
            await asyncio.to_thread(shutil.rmtree, Path(leftover.path), ignore_errors=True)
            await pulls.forget(Path(leftover.path))
    return body.reply(PruneReply(leftovers=leftovers))


def _refuse_busy(records: dict[str, ModelRecord], pool: Pool) -> None:
    for report in pool.report():
        if report.key in records and report.in_flight + report.waiting:
            raise Busy(f"`{report.name}` is serving requests; wait for them or use --force")
        if report.key in records and report.pinned and report.is_there:
            raise Busy(f"`{report.name}` is pinned; unpin it or use --force")


async def _verification(record: ModelRecord) -> AsyncGenerator[VerifyEvent]:
    try:
        async with contextlib.aclosing(store.verification(record)) as frames:
            async for frame in frames:
                yield _verify_event(record, frame)
    except OsaurusError as error:
        yield VerifyFailed(error=errors.error_body(error))


def _verify_event(record: ModelRecord, frame: messages.Hashing | messages.Hashed) -> VerifyEvent:
    if isinstance(frame, messages.Hashing):
        return VerifyProgress(file=frame.file, done=frame.done, total=frame.total)
    files = [VerifiedFile(name=file.name, bytes=file.bytes, state=file.state) for file in frame.files]
    return VerifyDone(model=record.name, files=files)
