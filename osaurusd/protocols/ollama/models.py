"""`/api/version`, `/api/tags`, `/api/ps` and `/api/show`."""

import asyncio
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from osaurusd.errors import InvalidRequest
from osaurusd.http.json import json_response, read_json
from osaurusd.inference import limits
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.models import metadata
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pool import Pool
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.protocols.ollama.names import format_time, strip_tag

API_VERSION = "0.14.0"
"""The version of Ollama whose API this is. Clients enable features by it, so it is not the version of the daemon.

This is the first version that also serves Anthropic's API. Codex requires 0.13.4, which served the Responses API.
"""

NEVER = timedelta(days=365 * 100)
"""How far in the future a model expires that stays loaded: the field must have a time."""

FORMAT = "safetensors"

MODEL_PATHS = FieldPaths({limits.MODEL: "model"})
"""The fields of a `ModelBody` by their location in a generation request."""


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """Names a model; `name` is the field of older clients."""

    model: str | None = None
    name: str | None = None

    @property
    def requested(self) -> str:
        """The name of the model.

        Raises:
            InvalidRequest: there is none.
        """
        name = strip_tag(self.model or self.name)
        if not name:
            raise InvalidRequest("`model`: is required", param="model")
        return name


class ShowRequest(ModelBody, frozen=True, kw_only=True):
    verbose: bool | None = None


class Details(msgspec.Struct, frozen=True, kw_only=True):
    parent_model: str = ""
    format: str = FORMAT
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class TagList(msgspec.Struct, frozen=True, kw_only=True):
    models: list[Tag]


class RunningModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class RunningList(msgspec.Struct, frozen=True, kw_only=True):
    models: list[RunningModel]


class ShowResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model in detail. `template` and `modelfile` are empty: models have Jinja templates, and no Modelfile."""

    license: str
    modelfile: str = ""
    parameters: str
    template: str = ""
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(msgspec.Struct, frozen=True):
    version: str


class Models:
    """Handles the endpoints.

    Args:
        catalog: the models on disk.
        pool: the models in memory.
    """

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._catalog = catalog
        self._pool = pool

    async def version(self, _: web.Request) -> web.Response:
        return json_response(Version(API_VERSION))

    async def tags(self, _: web.Request) -> web.Response:
        """List the models that can be served. An alias is listed like a model."""
        named = [(name, record) for record in await self._catalog.available() for name in record.names]
        return json_response(TagList(models=[_tag(name, record) for name, record in named]))

    async def running(self, _: web.Request) -> web.Response:
        records = {record.repo: record for record in await self._catalog.records()}
        workers = [worker for worker in self._pool.snapshot() if worker.in_memory and worker.key in records]
        return json_response(RunningList(models=[_running(worker, records[worker.key]) for worker in workers]))

    async def show(self, request: web.Request) -> web.Response:
        body = await read_json(request, ShowRequest)
        with MODEL_PATHS.named():
            record = await self._catalog.find(body.requested)
        provenance = await asyncio.to_thread(metadata.read_provenance, record)
        response = ShowResponse(
            license=provenance.license or "",
            parameters=_parameters(record),
            details=_details(record),
            model_info=_model_info(record),
            capabilities=_capabilities(record),
            modified_at=_time(record.created),
        )
        return json_response(response)


def _tag(name: str, record: ModelRecord) -> Tag:
    return Tag(
        name=name,
        model=name,
        modified_at=_time(record.created),
        size=record.size_bytes,
        digest=_digest(record),
        details=_details(record),
    )


def _running(worker: WorkerSnapshot, record: ModelRecord) -> RunningModel:
    left = NEVER if worker.idle_left_seconds is None else timedelta(seconds=worker.idle_left_seconds)
    size = max(worker.mlx_bytes, worker.needs_bytes)
    return RunningModel(
        name=record.name,
        model=record.name,
        size=size,
        digest=_digest(record),
        details=_details(record),
        expires_at=format_time(datetime.now(UTC) + left),
        size_vram=0 if worker.device == "cpu" else size,
        context_length=record.context_length or 0,
    )


def _details(record: ModelRecord) -> Details:
    family = record.architecture or ""
    return Details(
        family=family,
        families=[family] if family else [],
        parameter_size=_parameter_size(record.parameters),
        quantization_level=record.quantization or "",
    )


def _model_info(record: ModelRecord) -> dict[str, Any]:
    family = record.architecture or "unknown"
    info: dict[str, Any] = {"general.architecture": family, "general.basename": record.name}
    if record.parameters is not None:
        info["general.parameter_count"] = record.parameters
    if record.context_length is not None:
        info[f"{family}.context_length"] = record.context_length
    return info


def _capabilities(record: ModelRecord) -> list[str]:
    """Return what the daemon can do with the model. Editors enable features by this list."""
    supported = {
        "completion": record.task == "generate",
        "vision": record.capabilities.vision,
        "embedding": record.task == "embed",
        "tools": record.capabilities.tools,
        "thinking": record.capabilities.reasoning,
    }
    return [name for name, is_supported in supported.items() if is_supported]


def _parameters(record: ModelRecord) -> str:
    """Return the model's own sampling parameters, one per line."""
    generation = record.generation
    values = {
        "min_p": generation.min_p,
        "repeat_penalty": generation.repetition_penalty,
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
    }
    return "\n".join(f"{name:<30} {value:g}" for name, value in values.items() if value is not None)


def _parameter_size(parameters: int | None) -> str:
    if parameters is None:
        return ""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters)


def _digest(record: ModelRecord) -> str:
    """Return an identifier of this version of the model: a hash of the names and sizes of its files."""
    return _hash((record.repo, *(f"{name} {size}" for name, size in record.files)))


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _time(seconds: int) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
