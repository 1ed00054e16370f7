"""Downloads from the hub: asking for one, following and cancelling it; and looking for models there."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

import msgspec
from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.admin import views
from osaurusd.admin.context import PULLS
from osaurusd.downloads import hub
from osaurusd.errors import ModelNotFound
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.http.streaming import stream_ndjson
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.wire.admin import ModelInfo, ModelState
from osaurusd.wire.pulls import (
    FoundModel,
    PullCancel,
    PullDone,
    PullEnded,
    PullEvent,
    PullInfo,
    PullProgress,
    PullRequest,
    PullRoute,
    PullState,
    PullWatch,
    SearchRequest,
)

# Of the memory for models, what weights may take: the rest is for a little context.
WEIGHTS_SHARE = 0.93

_HOW = {
    PullState.QUEUED: "waiting for its turn",
    PullState.RUNNING: "downloading",
    PullState.FAILED: "its pull failed",
    PullState.CANCELLED: "its pull was cancelled",
}


def with_partials(request: web.Request, models: Sequence[ModelInfo]) -> list[ModelInfo]:
    """All models, and those of which pulls have brought a part so far."""
    listed = {model.repo.lower(): model for model in models}
    for pull in request.app[PULLS].all():
        known = listed.get(pull.repo.lower())
        begun = pull.state in _HOW and pull.total > 0
        if begun and (known is None or known.state is not ModelState.AVAILABLE):
            folder = str(request.app[PULLS].folder(pull))
            listed[pull.repo.lower()] = _partial(pull, folder, known.name if known else pull.name)
    return list(listed.values())


def _partial(pull: PullInfo, folder: str, name: str) -> ModelInfo:
    share = pull.done / pull.total
    hint = "" if pull.state in (PullState.QUEUED, PullState.RUNNING) else f"; `osaurusctl pull {name}` goes on"
    return ModelInfo(
        name=name,
        repo=pull.repo,
        path=folder,
        source="hub",
        state=ModelState.PARTIAL,
        bytes=pull.done,
        created=pull.added,
        reason=f"{share:.0%} is here, {_HOW[pull.state]}{hint}",
        share=share,
    )


async def _index(request: web.Request) -> web.Response:
    return json_response(request.app[PULLS].all())


async def _create(request: web.Request) -> web.Response:
    order = await read_json(request, PullRequest)
    return json_response(await request.app[PULLS].add(order.model, order.token), status=202)


async def _cancel(request: web.Request) -> web.Response:
    order = await read_json(request, PullCancel)
    return json_response(await request.app[PULLS].cancel(order.pull))


async def _watch(request: web.Request) -> web.StreamResponse:
    """Follow pulls; a client that goes away leaves them as they are."""
    order = await read_json(request, PullWatch)
    return await stream_ndjson(request, _told(request, order.pulls))


async def _told(request: web.Request, wanted: Sequence[str]) -> AsyncGenerator[PullEvent]:
    async with contextlib.aclosing(request.app[PULLS].watch(wanted)) as pulls:
        async for pull in pulls:
            yield await _event(request.app[keys.CATALOG], pull)


async def _event(catalog: Catalog, pull: PullInfo) -> PullEvent:
    if pull.state in (PullState.QUEUED, PullState.RUNNING):
        return PullProgress(pull=pull)
    if pull.state is PullState.DONE:
        # Somebody may have removed it since.
        with contextlib.suppress(ModelNotFound):
            return PullDone(pull=pull, model=views.model(await catalog.find_any(pull.repo)))
    return PullEnded(pull=pull)


async def _search(request: web.Request) -> web.Response:
    order = await read_json(request, SearchRequest)
    found = await hub.search(order.words, order.author, order.limit, order.token)
    here = {record.repo.lower(): record.state.value for record in await request.app[keys.CATALOG].records()}
    memory = request.app[keys.POOL].budget.total_bytes * WEIGHTS_SHARE
    models = [
        FoundModel(
            repo=model.repo,
            name=names.api_name(model.repo),
            bytes=model.bytes,
            parameters=model.parameters,
            downloads=model.downloads,
            fits=None if model.bytes is None else model.bytes <= memory,
            gated=model.gated,
        )
        for model in found
    ]
    return json_response(
        [msgspec.structs.replace(model, state=here.get(model.repo.lower(), model.state)) for model in models]
    )


ROUTES = [
    Route("GET", PullRoute.PULLS, _index),
    Route("POST", PullRoute.PULLS, _create),
    Route("POST", PullRoute.WATCH, _watch),
    Route("POST", PullRoute.CANCEL, _cancel),
    Route("POST", PullRoute.SEARCH, _search),
]
