"""Models on disk: list, details, aliases, removal, verification and leftovers."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from aiohttp import web

from osaurusd.admin import views
from osaurusd.admin.routes import get, post
from osaurusd.downloads.manager import PullManager
from osaurusd.downloads.pulls import is_active
from osaurusd.errors import Busy, InvalidRequest, OsaurusError
from osaurusd.groups.distribution import Distribution
from osaurusd.groups.files import ModelFiles
from osaurusd.groups.rank_service import RankService
from osaurusd.http.errors import error_body
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.http.streaming import stream_ndjson
from osaurusd.imports.manager import ImportManager
from osaurusd.models import maintenance, messages, metadata, names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.wire import admin as wire
from osaurusd.wire.admin import (
    JSON_LINES,
    Alias,
    AliasRequest,
    Availability,
    DetailsRequest,
    ModelInfo,
    PruneReply,
    PruneRequest,
    Removed,
    RemoveReply,
    RemoveRequest,
    VerifyDone,
    VerifyEvent,
    VerifyFailed,
    VerifyProgress,
    VerifyRequest,
)
from osaurusd.wire.pulls import PullInfo, PullState

_PULL_STATES = {
    PullState.QUEUED: "waiting in the queue",
    PullState.RUNNING: "downloading",
    PullState.FAILED: "the pull failed",
    PullState.CANCELLED: "the pull was cancelled",
}


class ModelsApi:
    """Handlers for models on disk.

    Args:
        catalog: the models.
        pool: the models in memory.
        pins: forgets removed models.
        imports: runs imports, whose files are no leftovers.
        pulls: downloads, whose partial models are listed too.
        distribution: where models run.
        copies: copies models of other hosts, whose files are no leftovers.
        ranks: runs parts of models for other hosts.
    """

    def __init__(
        self,
        catalog: Catalog,
        pool: Pool,
        pins: Pins,
        imports: ImportManager,
        pulls: PullManager,
        distribution: Distribution,
        copies: ModelFiles,
        ranks: RankService,
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._pins = pins
        self._imports = imports
        self._pulls = pulls
        self._distribution = distribution
        self._copies = copies
        self._ranks = ranks

    @property
    def routes(self) -> list[Route]:
        return [
            get(wire.Route.MODELS, self.list_models),
            post(wire.Route.DETAILS, self.show_details),
            get(wire.Route.ALIASES, self.list_aliases),
            post(wire.Route.ALIASES, self.set_alias),
            post(wire.Route.REMOVE, self.remove),
            post(wire.Route.VERIFY, self.verify),
            post(wire.Route.PRUNE, self.prune),
        ]

    async def list_models(self, _: web.Request) -> web.Response:
        """List all models, including partially downloaded ones."""
        await self._catalog.refresh()
        workers = self._pool.snapshot()
        models = {record.repo.lower(): views.model_info(record, workers) for record in await self._catalog.records()}
        for pull in self._pulls.all():
            model = models.get(pull.repo.lower())
            is_partial = pull.state in _PULL_STATES and pull.total > 0
            if is_partial and (model is None or model.state is not Availability.AVAILABLE):
                name = model.name if model else pull.name
                models[pull.repo.lower()] = _partial_model(pull, self._pulls.folder(pull), name)
        return json_response(list(models.values()))

    async def show_details(self, request: web.Request) -> web.Response:
        """Describe one model, whether it can be served or not."""
        body = await read_json(request, DetailsRequest)
        record = await self._catalog.find_any(body.model)
        provenance = await asyncio.to_thread(metadata.read_provenance, record)
        placement = self._distribution.info(record)
        return json_response(
            views.model_details(record, provenance, self._pool.snapshot(), self._pool.needs_bytes(record), placement)
        )

    async def list_aliases(self, _: web.Request) -> web.Response:
        records = await self._catalog.records()
        return json_response([Alias(alias=alias, target=record.name) for record in records for alias in record.aliases])

    async def set_alias(self, request: web.Request) -> web.Response:
        """Add or remove an alias."""
        body = await read_json(request, AliasRequest)
        alias = names.normalize(body.alias)
        registry = self._catalog.registry
        if body.target is None:
            target = await asyncio.to_thread(registry.remove_alias, alias)
        else:
            record = await self._catalog.find_any(body.target)
            await asyncio.to_thread(registry.add_alias, alias, record.repo)
            target = record.name
        await self._catalog.refresh()
        return json_response(Alias(alias=alias, target=target))

    async def remove(self, request: web.Request) -> web.Response:
        """Unload models and remove them from disk. Nothing is removed if any of them is unknown or in use."""
        body = await read_json(request, RemoveRequest)
        records = {record.repo: record for record in [await self._catalog.find_any(name) for name in body.models]}
        if not body.force:
            self._reject_models_in_use(records)
        removed = []
        for record in records.values():
            if body.dry_run:
                freed = await maintenance.remove_model(self._catalog, record, dry_run=True)
            else:
                freed = await self._remove(record, force=body.force)
            removed.append(Removed(name=record.name, repo=record.repo, bytes=freed))
        if not body.dry_run:
            await self._catalog.refresh()
        return json_response(RemoveReply(removed=removed))

    async def remove_unused(self, record: ModelRecord) -> None:
        """Unload a model and remove it from disk.

        Raises:
            Busy: the model is in use or pinned.
        """
        self._reject_models_in_use({record.repo: record})
        await self._remove(record, force=False)
        await self._catalog.refresh()

    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Hash the files of a model and stream the progress. It is cancelled when the client disconnects."""
        body = await read_json(request, VerifyRequest)
        record = await self._catalog.find_any(body.model)
        if record.escapes:
            raise InvalidRequest(f'model "{record.name}" cannot be verified: {record.reason}', param="model")
        events = _verify_events(record)
        return await stream_ndjson(request, events, error_value=_verify_error, content_type=JSON_LINES)

    async def prune(self, request: web.Request) -> web.Response:
        """Remove leftovers of imports, pulls and copies, except those of running or queued ones."""
        body = await read_json(request, PruneRequest)
        active = (*self._imports.running, *self._pulls.active_folders(), *self._copies.active_folders)
        in_use = {str(path) for path in active}
        found = await maintenance.find_leftovers(self._catalog.models_dir, self._catalog.hub)
        leftovers = [leftover for leftover in found if leftover.path not in in_use]
        if not body.dry_run:
            for leftover in leftovers:
                await asyncio.to_thread(shutil.rmtree, Path(leftover.path), ignore_errors=True)
                await self._pulls.forget(Path(leftover.path))
        return json_response(PruneReply(leftovers=leftovers))

    def _reject_models_in_use(self, records: Mapping[str, ModelRecord]) -> None:
        for worker in self._pool.snapshot():
            if worker.key in records and worker.in_flight + worker.waiting:
                raise Busy(f'model "{worker.name}" is serving requests; wait for them to finish or use --force')
            if worker.key in records and worker.pinned and worker.in_memory:
                raise Busy(f'model "{worker.name}" is pinned; unpin it or use --force')
        for record in records.values():
            if owners := self._ranks.owners(record.path):
                raise Busy(
                    f'model "{record.name}" runs here for host "{owners[0]}"; unload it there first, or use --force'
                )

    async def _remove(self, record: ModelRecord, *, force: bool) -> int:
        """Unload, remove and forget a model; return the freed bytes."""
        await self._pool.unload(record.repo, force=force)
        await self._ranks.end_users(record.path)
        freed = await maintenance.remove_model(self._catalog, record, dry_run=False)
        await self._forget(record.repo)
        return freed

    async def _forget(self, repo: str) -> None:
        await asyncio.to_thread(self._catalog.registry.forget, repo)
        await asyncio.to_thread(self._pins.remove, repo)
        self._pool.unpin(repo)
        self._distribution.forget(repo)


def _partial_model(pull: PullInfo, folder: Path, name: str) -> ModelInfo:
    share = pull.done / pull.total
    hint = "" if is_active(pull) else f'; run "osaurusctl pull {name}" to resume'
    return ModelInfo(
        name=name,
        repo=pull.repo,
        path=str(folder),
        source="hub",
        state=Availability.PARTIAL,
        bytes=pull.done,
        created=pull.added,
        reason=f"{share:.0%} downloaded, {_PULL_STATES[pull.state]}{hint}",
        share=share,
    )


async def _verify_events(record: ModelRecord) -> AsyncGenerator[VerifyEvent]:
    async with contextlib.aclosing(maintenance.verify_model(record)) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Hashing):
                yield VerifyProgress(file=frame.file, done=frame.done, total=frame.total)
            else:
                yield VerifyDone(model=record.name, files=frame.files)


def _verify_error(error: OsaurusError) -> VerifyFailed:
    return VerifyFailed(error=error_body(error))
