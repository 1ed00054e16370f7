"""Creating models from files or from other models: import and quantization."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from aiohttp import web

from osaurusd.admin import views
from osaurusd.admin.routes import post
from osaurusd.errors import InvalidRequest, OsaurusError
from osaurusd.http.errors import error_body
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.http.streaming import stream_ndjson
from osaurusd.imports.manager import ImportManager
from osaurusd.imports.messages import Event, Imported, Note, Progress, QuantizationSettings
from osaurusd.models import metadata
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.wire import admin as wire
from osaurusd.wire.admin import JSON_LINES, ImportDone, ImportErrorEvent, ImportProgress, ImportRequest
from osaurusd.wire.imports import CheckRequest, ImportNote, ImportRoute, ImportStreamEvent, QuantizeDone, QuantizeEvent
from osaurusd.wire.lineage import QuantizationMode, QuantizeRequest


class ImportsApi:
    """Handlers that create models. A stream that the client closes cancels the work.

    Args:
        catalog: the models.
        imports: runs imports and quantizations.
    """

    def __init__(self, catalog: Catalog, imports: ImportManager) -> None:
        self._catalog = catalog
        self._imports = imports

    @property
    def routes(self) -> list[Route]:
        return [
            post(wire.Route.IMPORTS, self.import_model),
            post(ImportRoute.CHECKS, self.check_models),
            post(ImportRoute.QUANTIZATIONS, self.quantize_model),
        ]

    async def import_model(self, request: web.Request) -> web.StreamResponse:
        """Import a model and stream the progress."""
        body = await read_json(request, ImportRequest)
        options = [f"--quantize={body.quantize}", f"--group-size={body.group_size}"]
        events = _import_events(self._imports.run(body.path, body.name, body.files, body.origin, options=options))
        return await stream_ndjson(request, events, error_value=_error_event, content_type=JSON_LINES)

    async def check_models(self, request: web.Request) -> web.Response:
        """Find out which models of other programs can be imported."""
        body = await read_json(request, CheckRequest)
        return json_response(await self._imports.check(body.items, body.files))

    async def quantize_model(self, request: web.Request) -> web.StreamResponse:
        """Quantize a model and stream the progress."""
        body = await read_json(request, QuantizeRequest)
        settings = _settings(body)
        base = await self._catalog.find(body.model)
        events = _quantize_events(base, self._imports.quantize(base, settings, body.name))
        return await stream_ndjson(request, events, error_value=_error_event, content_type=JSON_LINES)


def _settings(body: QuantizeRequest) -> QuantizationSettings:
    if body.mode is not QuantizationMode.AFFINE:
        for name, value in (("bits", body.bits), ("group_size", body.group_size)):
            if value is not None:
                raise InvalidRequest(f"`{name}`: the mode {body.mode} fixes it; leave it out", param=name)
    return QuantizationSettings(mode=body.mode, bits=body.bits, group_size=body.group_size, requantize=body.requantize)


async def _import_events(events: AsyncGenerator[Event | ModelRecord]) -> AsyncGenerator[ImportStreamEvent]:
    quantization = None
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case Imported():
                    quantization = event.quantization
                case ModelRecord():
                    yield ImportDone(model=views.model_info(event), quantization=quantization)
                case _:
                    yield _stream_event(event)


async def _quantize_events(
    base: ModelRecord, events: AsyncGenerator[Event | ModelRecord]
) -> AsyncGenerator[QuantizeEvent]:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Progress | Note):
                yield _stream_event(event)
            elif (
                isinstance(event, ModelRecord)
                and (lineage := (await asyncio.to_thread(metadata.read_provenance, event)).lineage) is not None
            ):
                yield QuantizeDone(model=views.model_info(event), base_bytes=base.size_bytes, lineage=lineage)


def _stream_event(event: Progress | Note) -> ImportProgress | ImportNote:
    if isinstance(event, Note):
        return ImportNote(text=event.text)
    return ImportProgress(stage=event.stage, done=event.done, total=event.total)


def _error_event(error: OsaurusError) -> ImportErrorEvent:
    return ImportErrorEvent(error=error_body(error))
