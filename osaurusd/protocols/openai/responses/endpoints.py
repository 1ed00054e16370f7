"""The endpoints of the Responses API."""

import contextlib
import re

import msgspec
from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.errors import InvalidRequest, NotFound
from osaurusd.http.errors import excerpt
from osaurusd.http.json import json_response, read_json
from osaurusd.http.request import CONTEXT
from osaurusd.http.streaming import stream_sse
from osaurusd.protocols.openai.rendering import DONE
from osaurusd.protocols.openai.responses.background import BackgroundRun, BackgroundRuns
from osaurusd.protocols.openai.responses.compaction import compaction, summary_request
from osaurusd.protocols.openai.responses.creation import ResponseCreator, is_response
from osaurusd.protocols.openai.responses.paging import page_of
from osaurusd.protocols.openai.responses.store import ObjectStore, Scope, StoredObject, decode_items
from osaurusd.protocols.openai.responses.types import DeletedResponse, InputTokens, ResponseRequest
from osaurusd.wire.errors import as_json

_NUMBER = re.compile(r"-1|[0-9]{1,9}")


class Responses:
    """Handles the endpoints.

    Args:
        creator: creates responses.
        store: keeps responses.
    """

    def __init__(self, creator: ResponseCreator, store: ObjectStore) -> None:
        self._creator = creator
        self._store = store
        self._background = BackgroundRuns()

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, ResponseRequest)
        if body.background and body.store is False:
            raise InvalidRequest("`background`: requires `store` to be true", param="background")
        with contextlib.ExitStack() as held:
            run = await self._creator.create(body, self._scope(request), held)
            in_background, stream = body.background, body.stream
            del body  # it contains the text of images
            if in_background:
                context = request[CONTEXT]
                context.hold_bytes(held)
                background = self._background.start(run, context.owner, context.admission, held)
                return await _stream_background(request, background) if stream else json_response(run.response)
            if stream:
                return await stream_sse(request, run.stream(), error_event=run.error_event, last_event=DONE)
            return json_response(await run.collect())

    async def count_input_tokens(self, request: web.Request) -> web.Response:
        body = await read_json(request, ResponseRequest)
        tokens = await self._creator.count_input_tokens(body, self._scope(request))
        return json_response(InputTokens(input_tokens=tokens))

    async def compact(self, request: web.Request) -> web.Response:
        body = await convert(summary_request, await read_json(request, ResponseRequest))
        with contextlib.ExitStack() as held:
            run = await self._creator.create(body, self._scope(request), held)
            return json_response(compaction(await run.collect()))

    async def show(self, request: web.Request) -> web.StreamResponse:
        id_ = request.match_info["response"]
        background = self._background.get(id_, request[CONTEXT].owner)
        if request.query.get("stream") == "true":
            if background is None:
                raise InvalidRequest("`stream`: the response is not running in the background", param="stream")
            return await _stream_background(request, background, _starting_after(request))
        if background is not None:
            return json_response(background.run.response)
        return web.Response(body=(await self._find(request)).body, content_type="application/json")

    async def delete(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_, request[CONTEXT].owner)
        if background is not None:
            await background.cancel()
        await self._scope(request).delete((await self._find(request)).id)
        return json_response(DeletedResponse(id=id_))

    async def cancel(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_, request[CONTEXT].owner)
        if background is not None:
            await background.cancel()
            return json_response(background.run.response)
        stored = await self._find(request)
        if not msgspec.json.decode(stored.body)["background"]:
            raise InvalidRequest(f"response {as_json(id_)} does not run in the background, so it cannot be cancelled")
        return web.Response(body=stored.body, content_type="application/json")

    async def list_input_items(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_, request[CONTEXT].owner)
        encoded = background.run.input if background is not None else (await self._find(request)).input
        return json_response(page_of(request, decode_items(encoded)))

    def _scope(self, request: web.Request) -> Scope:
        return Scope(self._store, request[CONTEXT].owner)

    async def _find(self, request: web.Request) -> StoredObject:
        id_ = request.match_info["response"]
        stored = await self._scope(request).get(id_)
        if stored is None or not is_response(stored):
            raise NotFound(f'no response "{excerpt(id_)}" is stored')
        return stored


async def _stream_background(request: web.Request, background: BackgroundRun, after: int = -1) -> web.StreamResponse:
    return await stream_sse(request, background.watch(after), error_event=background.run.error_event, last_event=DONE)


def _starting_after(request: web.Request) -> int:
    value = request.query.get("starting_after", "-1")
    if not _NUMBER.fullmatch(value):
        raise InvalidRequest(
            f'`starting_after`: must be an event number, not "{excerpt(value)}"', param="starting_after"
        )
    return int(value)
