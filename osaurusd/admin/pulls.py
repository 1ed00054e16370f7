"""Downloads from the hub: asking for one, following and cancelling it; and looking for models there."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

import msgspec
from aiohttp import web

from osaurusd.admin import lines, views
from osaurusd.admin.context import PULLS
from osaurusd.downloads import hub
from osaurusd.errors import ModelNotFound
from osaurusd.http import body, keys
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


def add_routes(app: web.Application) -> None:
    """Mount what is asked for."""
    app.router.add_get(PullRoute.PULLS, _index)
    app.router.add_post(PullRoute.PULLS, _create)
    app.router.add_post(PullRoute.WATCH, _watch)
    app.router.add_post(PullRoute.CANCEL, _cancel)
    app.router.add_post(PullRoute.SEARCH, _search)


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
    return body.reply(request.app[PULLS].all())


async def _create(request: web.Request) -> web.Response:
    order = await body.read(request, PullRequest)
    return body.reply(await request.app[PULLS].add(order.model, order.token), status=202)


async def _cancel(request: web.Request) -> web.Response:
    order = await body.read(request, PullCancel)
    return body.reply(await request.app[PULLS].cancel(order.pull))


async def _watch(request: web.Request) -> web.StreamResponse:
    """Follow pulls; a client that goes away leaves them as they are."""
    order = await body.read(request, PullWatch)
    return await lines.stream(request, _told(request, order.pulls))


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
    order = await body.read(request, SearchRequest)
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
    return body.reply(
        [msgspec.structs.replace(model, state=here.get(model.repo.lower(), model.state)) for model in models]
    )
