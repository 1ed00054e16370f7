"""Downloads from the Hugging Face Hub: start, follow, cancel; and searching the hub."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from aiohttp import web

from osaurusd.admin import views
from osaurusd.admin.routes import get, post
from osaurusd.downloads import hub
from osaurusd.downloads.manager import PullManager
from osaurusd.downloads.pulls import is_active
from osaurusd.errors import ModelNotFound
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.http.streaming import stream_ndjson
from osaurusd.models import compatibility, names
from osaurusd.models.catalog import Catalog
from osaurusd.pool.pool import Pool
from osaurusd.wire.admin import JSON_LINES
from osaurusd.wire.pulls import (
    WEIGHTS_SHARE,
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

NOT_DOWNLOADED = "not downloaded"


class PullsApi:
    """Handlers for downloads.

    Args:
        pulls: the downloads.
        catalog: the models that are downloaded.
        pool: its memory budget decides which models fit.
    """

    def __init__(self, pulls: PullManager, catalog: Catalog, pool: Pool) -> None:
        self._pulls = pulls
        self._catalog = catalog
        self._pool = pool

    @property
    def routes(self) -> list[Route]:
        return [
            get(PullRoute.PULLS, self.list_pulls),
            post(PullRoute.PULLS, self.start),
            post(PullRoute.WATCH, self.watch),
            post(PullRoute.CANCEL, self.cancel),
            post(PullRoute.SEARCH, self.search),
        ]

    async def list_pulls(self, _: web.Request) -> web.Response:
        return json_response(self._pulls.all())

    async def start(self, request: web.Request) -> web.Response:
        body = await read_json(request, PullRequest)
        return json_response(await self._pulls.add(body.model, body.token), status=202)

    async def cancel(self, request: web.Request) -> web.Response:
        body = await read_json(request, PullCancel)
        return json_response(await self._pulls.cancel(body.pull))

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Stream the progress of pulls. They continue when the client disconnects."""
        body = await read_json(request, PullWatch)
        return await stream_ndjson(request, self._events(body.pulls), content_type=JSON_LINES)

    async def search(self, request: web.Request) -> web.Response:
        body = await read_json(request, SearchRequest)
        models = await hub.search(body.words, body.task, body.author, body.limit, body.token)
        states = {record.repo.lower(): record.state.value for record in await self._catalog.records()}
        max_weights = self._pool.budget.total_bytes * WEIGHTS_SHARE
        return json_response(
            [
                FoundModel(
                    repo=model.repo,
                    name=names.api_name(model.repo),
                    bytes=model.bytes,
                    parameters=model.parameters,
                    downloads=model.downloads,
                    fits=None if model.bytes is None else model.bytes <= max_weights,
                    gated=model.gated,
                    state=states.get(model.repo.lower(), NOT_DOWNLOADED),
                    images=compatibility.support_of_images(model.architecture) if model.takes_images else None,
                )
                for model in models
            ]
        )

    async def _events(self, pull_ids: Sequence[str]) -> AsyncGenerator[PullEvent]:
        async with contextlib.aclosing(self._pulls.watch(pull_ids)) as pulls:
            async for pull in pulls:
                yield await self._event(pull)

    async def _event(self, pull: PullInfo) -> PullEvent:
        if is_active(pull):
            return PullProgress(pull=pull)
        if pull.state is PullState.DONE:
            # The model may have been removed since.
            with contextlib.suppress(ModelNotFound):
                return PullDone(pull=pull, model=views.model_info(await self._catalog.find_any(pull.repo)))
        return PullEnded(pull=pull)
