"""`GET /models` and `GET /models/{model}`."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from osaurusd.http.json import json_response
from osaurusd.inference.limits import MODEL
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord, Task
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.codex_models import CodexModel
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.wire.admin import WorkerState

_PATHS = FieldPaths({MODEL: "model"})


LoadState = Literal["loaded", "loading", "unloaded", "failed"]

_LOAD_STATES: Mapping[WorkerState, LoadState] = {
    WorkerState.QUEUED: "loading",
    WorkerState.STARTING: "loading",
    WorkerState.READY: "loaded",
    WorkerState.STOPPING: "unloaded",
    WorkerState.FAILED: "failed",
}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's format. The fields after `owned_by` are not part of OpenAI's API.

    Attributes:
        input_modalities: what the model accepts, unless that is only text.
        task, context_length, state: for routers.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["osaurus"] = "osaurus"
    task: Task
    context_length: int | None
    state: LoadState
    input_modalities: list[str] | UnsetType = UNSET

    @classmethod
    def from_record(cls, record: ModelRecord, name: str, state: LoadState) -> "Model":
        return cls(
            id=name,
            created=record.created,
            task=record.task,
            context_length=record.context_length,
            state=state,
            input_modalities=[*record.capabilities.input_modalities] if record.capabilities.vision else UNSET,
        )


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The available models; `models` is for Codex, which sends its version in the query."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[CodexModel] | UnsetType = UNSET


class Models:
    """Handles the endpoints."""

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._catalog = catalog
        self._pool = pool

    async def list_available(self, request: web.Request) -> web.Response:
        """List the models that can be served; each alias is a model of the list too."""
        records = await self._catalog.available()
        named = [(name, record) for record in records for name in record.names]
        states = self._load_states()
        data = [Model.from_record(record, name, states.get(record.repo, "unloaded")) for name, record in named]
        if "client_version" not in request.query:
            return json_response(ModelList(data=data))
        models = [CodexModel.from_record(record, name) for name, record in named]
        return json_response(ModelList(data=data, models=models))

    async def show(self, request: web.Request) -> web.Response:
        """Show one model, found by any of its names."""
        with _PATHS.named():
            record = await self._catalog.find(request.match_info["model"])
        return json_response(Model.from_record(record, record.name, self._load_states().get(record.repo, "unloaded")))

    def _load_states(self) -> dict[str, LoadState]:
        """Return the states by repository of the models in memory, queued or failed."""
        return {worker.key: _LOAD_STATES[worker.state] for worker in self._pool.snapshot()}
