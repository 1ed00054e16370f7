"""`/api/pull`, `/api/delete`, `/api/copy`, `/api/create` and `/api/push`: endpoints that change models on disk."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from osaurusd.downloads.manager import PullManager
from osaurusd.downloads.pulls import is_active
from osaurusd.errors import Forbidden, InvalidRequest, NotFound, PullFailed, UnsupportedParameter
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_ndjson
from osaurusd.inference import limits
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.ollama.errors import error_line
from osaurusd.protocols.ollama.models import MODEL_PATHS, ModelBody
from osaurusd.protocols.ollama.names import strip_tag
from osaurusd.wire.pulls import PullInfo, PullStage, PullState

_STATUS = {
    PullStage.DOWNLOADING: "pulling {0}",
    PullStage.VERIFYING: "verifying sha256 digest",
    PullStage.PLACING: "writing manifest",
}


class PullBody(ModelBody, frozen=True, kw_only=True):
    stream: bool | None = None


class CopyRequest(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    destination: str


class CreateRequest(ModelBody, frozen=True, kw_only=True, rename={"from_": "from"}):
    """Names a model after another one. Other fields would change the model and are not supported."""

    from_: str | None = None
    stream: bool | None = None
    adapters: Any = None
    files: Any = None
    license: Any = None
    messages: Any = None
    modelfile: Any = None
    parameters: Any = None
    quantize: Any = None
    system: Any = None
    template: Any = None


UNSUPPORTED_CREATE_FIELDS = (
    "adapters", "files", "license", "messages", "modelfile", "parameters", "quantize", "system", "template",
)  # fmt: skip


class Management:
    """Handles the endpoints.

    Args:
        catalog: the models on disk.
        pulls: downloads models.
        remove: unloads a model, unless it is in use, and removes it from disk.
        is_allowed: returns whether clients of this listener may change models.
    """

    def __init__(
        self,
        catalog: Catalog,
        pulls: PullManager,
        remove: Callable[[ModelRecord], Awaitable[None]],
        is_allowed: Callable[[], bool],
    ) -> None:
        self._catalog = catalog
        self._pulls = pulls
        self._remove = remove
        self._is_allowed = is_allowed

    async def pull(self, request: web.Request) -> web.StreamResponse:
        """Download a model. The download continues when the client disconnects."""
        self._check_allowed('run "osaurusctl pull NAME" instead')
        body = await read_json(request, PullBody)
        pull = await self._pulls.add(body.requested, None)
        if body.stream is False:
            async with contextlib.aclosing(self._progress(pull)) as lines:
                async for line in lines:
                    last = line
            return json_response(last)
        return await stream_ndjson(request, self._progress(pull), error_value=error_line)

    async def delete(self, request: web.Request) -> web.Response:
        """Remove a model, or an alias."""
        self._check_allowed('run "osaurusctl rm NAME" instead')
        name = (await read_json(request, ModelBody)).requested
        if (alias := names.normalize(name)) in self._catalog.registry.aliases:
            await asyncio.to_thread(self._catalog.registry.remove_alias, alias)
            await self._catalog.refresh()
        else:
            with MODEL_PATHS.named():
                await self._remove(await self._catalog.find_any(name))
        return web.Response()

    async def copy(self, request: web.Request) -> web.Response:
        """Add an alias."""
        self._check_allowed('run "osaurusctl alias" instead')
        body = await read_json(request, CopyRequest)
        with FieldPaths({limits.MODEL: "source"}).named():
            await self._add_alias(body.destination, body.source)
        return web.Response()

    async def create(self, request: web.Request) -> web.Response:
        """Add an alias, if the request changes nothing else."""
        self._check_allowed('run "osaurusctl alias" or "osaurusctl import" instead')
        body = await read_json(request, CreateRequest)
        for name in UNSUPPORTED_CREATE_FIELDS:
            if getattr(body, name):
                raise UnsupportedParameter(
                    f"`{name}` is not supported: models are used as they are; omit it", param=name
                )
        if not body.from_:
            raise InvalidRequest("`from`: is required; only existing models can be used", param="from")
        with FieldPaths({limits.MODEL: "from"}).named():
            await self._add_alias(body.requested, body.from_)
        return json_response({"status": "success"})

    async def push(self, _: web.Request) -> web.Response:
        """Reject an upload."""
        raise NotFound("models cannot be pushed; upload them with the `hf` program")

    def _check_allowed(self, hint: str) -> None:
        if not self._is_allowed():
            raise Forbidden(f"models cannot be managed over TCP unless `ollama.allow_management` is set; {hint}")

    async def _add_alias(self, alias: str, model: str) -> None:
        record = await self._catalog.find_any(strip_tag(model) or "")
        await asyncio.to_thread(self._catalog.registry.add_alias, names.normalize(strip_tag(alias) or ""), record.repo)
        await self._catalog.refresh()

    async def _progress(self, pull: PullInfo) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of a pull, and `success`.

        Raises:
            PullFailed: the pull failed or was cancelled.
        """
        yield {"status": "pulling manifest"}
        async with contextlib.aclosing(self._pulls.watch([pull.id])) as states:
            async for state in states:
                if is_active(state):
                    yield _progress_line(state)
                elif state.state is not PullState.DONE:
                    reason = state.error.message if state.error else "it was cancelled"
                    raise PullFailed(f"the pull of {state.repo} failed: {reason}")
        await self._catalog.refresh()
        yield {"status": "success"}


def _progress_line(pull: PullInfo) -> dict[str, Any]:
    digest = pull.commit or pull.id
    status = _STATUS.get(pull.stage, "pulling manifest") if pull.stage else "pulling manifest"
    line: dict[str, Any] = {"status": status.format(digest[:12])}
    if pull.stage is PullStage.DOWNLOADING and pull.total:
        line |= {"digest": digest, "total": pull.total, "completed": pull.done}
    return line
