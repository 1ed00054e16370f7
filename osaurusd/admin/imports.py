"""`POST /v0/imports`: an import whose progress comes as JSON lines."""

import contextlib
from collections.abc import AsyncGenerator

from aiohttp import web

from osaurusd.admin import lines, views
from osaurusd.admin.context import IMPORTS
from osaurusd.errors import OsaurusError
from osaurusd.http import body, errors
from osaurusd.models.record import ModelRecord
from osaurusd.rpc import messages
from osaurusd.wire.admin import ImportDone, ImportEvent, ImportProgress, ImportRefused, ImportRequest


async def create(request: web.Request) -> web.StreamResponse:
    """Run an import and tell its progress; a client that goes away gives it up."""
    order = await body.read(request, ImportRequest)
    return await lines.stream(request, _told(request.app[IMPORTS].run(order.path, order.name)))


async def _told(events: AsyncGenerator[messages.Progress | ModelRecord]) -> AsyncGenerator[ImportEvent]:
    begun = False
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                yield _event(event)
                begun = True
        except OsaurusError as error:
            if not begun:
                raise
            yield ImportRefused(error=errors.error_body(error))


def _event(event: messages.Progress | ModelRecord) -> ImportEvent:
    if isinstance(event, ModelRecord):
        return ImportDone(model=views.model(event))
    return ImportProgress(stage=event.stage, done=event.done, total=event.total)
