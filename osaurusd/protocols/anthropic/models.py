"""`GET /models` and `GET /models/{model}` for Anthropic's clients."""

from datetime import UTC, datetime
from typing import Literal

import msgspec
from aiohttp import web

from osaurusd.errors import InvalidRequest
from osaurusd.http.json import json_response
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.inference.limits import MODEL
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord

MAX_PAGE = 1000

_PATHS = FieldPaths({MODEL: "model"})


class Model(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="model"):
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None

    @classmethod
    def from_record(cls, record: ModelRecord, name: str) -> "Model":
        created = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        context = record.context_length
        return cls(id=name, display_name=name, created_at=created, max_input_tokens=context, max_tokens=context)


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Models:
    """Handles the endpoints."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def list_available(self, request: web.Request) -> web.Response:
        """List the models that can be served, all at once unless the client sets a `limit`."""
        records = await self._catalog.available()
        models = [Model.from_record(record, name) for record in records for name in record.names]
        after, before = request.query.get("after_id"), request.query.get("before_id")
        ids = [model.id for model in models]
        start = ids.index(after) + 1 if after in ids else 0
        end = ids.index(before) if before in ids else len(models)
        limit = _parse_limit(request.query.get("limit")) or len(models)
        if before is not None and after is None:
            page, has_more = models[max(end - limit, 0) : end], end > limit
        else:
            page, has_more = models[start : min(start + limit, end)], start + limit < end
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(ModelPage(data=page, has_more=has_more, first_id=first, last_id=last))

    async def show(self, request: web.Request) -> web.Response:
        """Show one model, found by any of its names."""
        with _PATHS.named():
            record = await self._catalog.find(request.match_info["model"])
        return json_response(Model.from_record(record, record.name))


def _parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidRequest(f"`limit`: must be an integer from 1 to {MAX_PAGE}", param="limit")
    return int(text)
