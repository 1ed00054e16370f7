"""`GET /models` and `GET /models/{model}`."""

from typing import Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from osaurusd.http.json import json_response
from osaurusd.inference.limits import MODEL
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai.codex_models import CodexModel
from osaurusd.protocols.openai.errors import FieldPaths

_PATHS = FieldPaths({MODEL: "model"})


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model. Those that accept more than text have their `input_modalities`, which OpenAI's schema lacks."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["osaurus"] = "osaurus"
    input_modalities: list[str] | UnsetType = UNSET

    @classmethod
    def from_record(cls, record: ModelRecord, name: str) -> "Model":
        modalities = [*record.capabilities.input_modalities] if record.capabilities.vision else UNSET
        return cls(id=name, created=record.created, input_modalities=modalities)


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The available models; `models` is for Codex, which sends its version in the query."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[CodexModel] | UnsetType = UNSET


class Models:
    """Handles the endpoints."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def list_available(self, request: web.Request) -> web.Response:
        """List the models that can be served; each alias is a model of the list too."""
        records = await self._catalog.available()
        named = [(name, record) for record in records for name in record.names]
        data = [Model.from_record(record, name) for name, record in named]
        if "client_version" not in request.query:
            return json_response(ModelList(data=data))
        models = [CodexModel.from_record(record, name) for name, record in named]
        return json_response(ModelList(data=data, models=models))

    async def show(self, request: web.Request) -> web.Response:
        """Show one model, found by any of its names."""
        with _PATHS.named():
            record = await self._catalog.find(request.match_info["model"])
        return json_response(Model.from_record(record, record.name))
