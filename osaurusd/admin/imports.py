"""`POST /v0/imports`: an import whose progress comes as JSON lines."""

import contextlib
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import web

from osaurusd import ipc
from osaurusd.admin import views
from osaurusd.admin.context import IMPORTS
from osaurusd.catalog.record import ModelRecord
from osaurusd.errors import OsaurusError
from osaurusd.web import body, errors
from osaurusd.wire.admin import ImportDone, ImportEvent, ImportProgress, ImportRefused, ImportRequest


async def create(request: web.Request) -> web.StreamResponse:
    """Run an import and tell its progress; a client that goes away gives it up."""
    order = await body.read(request, ImportRequest)
    async with contextlib.aclosing(request.app[IMPORTS].run(order.path, order.name)) as events:
        # Awaited before the headers go out, so that what is refused at once has its true status.
        first = await anext(events)
        response = web.StreamResponse()
        response.content_type = "application/jsonl"
        await response.prepare(request)
        await response.write(_line(_event(first)))
        async for line in _rest(events):
            await response.write(line)
        await response.write_eof()
        return response


async def _rest(events: AsyncGenerator[ipc.Progress | ModelRecord]) -> AsyncGenerator[bytes]:
    try:
        async for event in events:
            yield _line(_event(event))
    except OsaurusError as error:
        yield _line(ImportRefused(error=errors.error_body(error)))


def _event(event: ipc.Progress | ModelRecord) -> ImportEvent:
    if isinstance(event, ModelRecord):
        return ImportDone(model=views.model(event))
    return ImportProgress(stage=event.stage, done=event.done, total=event.total)


def _line(event: ImportEvent) -> bytes:
    return msgspec.json.encode(event) + b"\n"
