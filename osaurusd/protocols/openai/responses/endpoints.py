"""The endpoints of the Responses API."""

import re
from collections.abc import Sequence

import msgspec
from aiohttp import web

from osaurusd.errors import InvalidRequest, NotFound, PreviousResponseNotFound
from osaurusd.http.errors import excerpt
from osaurusd.http.json import json_response, read_json
from osaurusd.http.request import CONTEXT
from osaurusd.http.streaming import stream_sse
from osaurusd.inference.limits import MODEL
from osaurusd.inference.service import Service
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.rendering import DONE
from osaurusd.protocols.openai.responses.background import BackgroundRun, BackgroundRuns
from osaurusd.protocols.openai.responses.compaction import compaction, summary_request
from osaurusd.protocols.openai.responses.request import ParsedRequest, parse_request
from osaurusd.protocols.openai.responses.run import ResponseRun
from osaurusd.protocols.openai.responses.store import ResponseStore, StoredResponse, decode_items
from osaurusd.protocols.openai.responses.types import (
    DeletedResponse,
    InputTokens,
    Item,
    ItemList,
    ResponseRequest,
)

MAX_PAGE = 100
DEFAULT_PAGE = 20
_NUMBER = re.compile(r"-1|[0-9]{1,9}")
_MODEL_PATH = FieldPaths({MODEL: "model"})


class Responses:
    """Handles the endpoints.

    Args:
        service: serves generation requests.
        store: keeps responses.
    """

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        self._background = BackgroundRuns()

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, ResponseRequest)
        if body.background and body.store is False:
            raise InvalidRequest("`background`: requires `store` to be true", param="background")
        history = await self._history(body)
        record, parsed = await self._parse(body, history)
        run = self._run(record, parsed, history)
        if body.background:
            background = self._background.start(run, request[CONTEXT].admission)
            return await _stream_background(request, background) if body.stream else json_response(run.response)
        if body.stream:
            return await stream_sse(request, run.stream(), error_event=run.error_event, last_event=DONE)
        return json_response(await run.collect())

    async def count_input_tokens(self, request: web.Request) -> web.Response:
        body = await read_json(request, ResponseRequest)
        record, parsed = await self._parse(body, await self._history(body))
        with FieldPaths(parsed.paths).named():
            tokens = await self._service.count_prompt_tokens(record, parsed.generation)
        return json_response(InputTokens(input_tokens=tokens))

    async def compact(self, request: web.Request) -> web.Response:
        body = summary_request(await read_json(request, ResponseRequest))
        history = await self._history(body)
        record, parsed = await self._parse(body, history)
        return json_response(compaction(await self._run(record, parsed, history).collect()))

    async def show(self, request: web.Request) -> web.StreamResponse:
        id_ = request.match_info["response"]
        background = self._background.get(id_)
        if request.query.get("stream") == "true":
            if background is None:
                raise InvalidRequest("`stream`: the response is not running in the background", param="stream")
            return await _stream_background(request, background, _starting_after(request))
        if background is not None:
            return json_response(background.run.response)
        return web.Response(body=(await self._find(id_)).response, content_type="application/json")

    async def delete(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_)
        if background is not None:
            await background.cancel()
        if not await self._store.delete(id_):
            raise _not_found(id_)
        return json_response(DeletedResponse(id=id_))

    async def cancel(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_)
        if background is not None:
            await background.cancel()
            return json_response(background.run.response)
        stored = await self._find(id_)
        if not msgspec.json.decode(stored.response)["background"]:
            raise InvalidRequest(f"response {id_!r} does not run in the background, so it cannot be cancelled")
        return web.Response(body=stored.response, content_type="application/json")

    async def list_input_items(self, request: web.Request) -> web.Response:
        id_ = request.match_info["response"]
        background = self._background.get(id_)
        encoded = background.run.input if background is not None else (await self._find(id_)).input
        return json_response(_page(request, decode_items(encoded)))

    async def _history(self, body: ResponseRequest) -> tuple[bytes, ...]:
        """Return the items of the conversation that the request continues."""
        id_ = body.previous_response_id
        if id_ is None:
            return ()
        stored = await self._store.get(id_)
        if stored is None:
            raise PreviousResponseNotFound(
                f"`previous_response_id`: no response {id_!r} is stored; send the whole conversation as `input`",
                param="previous_response_id",
            )
        return stored.items

    async def _parse(self, body: ResponseRequest, history: Sequence[bytes]) -> tuple[ModelRecord, ParsedRequest]:
        with _MODEL_PATH.named():
            record = await self._service.find(body.model)
        return record, parse_request(body, decode_items(history), self._service.defaults(record), record.name)

    def _run(self, record: ModelRecord, parsed: ParsedRequest, history: tuple[bytes, ...]) -> ResponseRun:
        return ResponseRun(self._service, record, parsed, history, self._store.put)

    async def _find(self, id_: str) -> StoredResponse:
        stored = await self._store.get(id_)
        if stored is None:
            raise _not_found(id_)
        return stored


def _not_found(id_: str) -> NotFound:
    return NotFound(f'no response "{excerpt(id_)}" is stored')


async def _stream_background(request: web.Request, background: BackgroundRun, after: int = -1) -> web.StreamResponse:
    return await stream_sse(request, background.watch(after), error_event=background.run.error_event, last_event=DONE)


def _starting_after(request: web.Request) -> int:
    value = request.query.get("starting_after", "-1")
    if not _NUMBER.fullmatch(value):
        raise InvalidRequest(
            f'`starting_after`: must be an event number, not "{excerpt(value)}"', param="starting_after"
        )
    return int(value)


def _page(request: web.Request, items: list[Item]) -> ItemList:
    """Return the page of items that the query asks for, newest first by default."""
    limit = request.query.get("limit", str(DEFAULT_PAGE))
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f'`limit`: must be between 1 and {MAX_PAGE}, not "{excerpt(limit)}"', param="limit")
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f'`order`: must be `asc` or `desc`, not "{excerpt(order)}"', param="order")
    ordered = items if order == "asc" else items[::-1]
    ids = [item.get("id") for item in ordered]
    after = request.query.get("after")
    if after is not None and after not in ids:
        raise InvalidRequest(f'`after`: "{excerpt(after)}" is not the id of an input item', param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = ordered[start : start + int(limit)]
    return ItemList(
        data=page,
        first_id=page[0].get("id") if page else None,
        last_id=page[-1].get("id") if page else None,
        has_more=start + len(page) < len(ordered),
    )
