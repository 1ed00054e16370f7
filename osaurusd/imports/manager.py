"""Importing and quantizing models: a child process writes a staging folder, which then becomes the model."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec

from osaurusd.errors import ImportFailed, InvalidRequest, NameTaken, QuantizationFailed
from osaurusd.imports import messages
from osaurusd.log import get_logger
from osaurusd.models import metadata, names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import STAGING_PREFIXES
from osaurusd.platform import environment
from osaurusd.rpc import job
from osaurusd.wire.admin import Availability
from osaurusd.wire.errors import as_json
from osaurusd.wire.files import describe, sync_folder
from osaurusd.wire.imports import CheckedModel, CheckItem
from osaurusd.wire.lineage import Origin, QuantizationMode

log = get_logger(__name__)

IMPORTER_COMMAND = job.module_command("osaurusd.imports.worker")
CHECKER_COMMAND = job.module_command("osaurusd.imports.worker.check")
QUANTIZER_COMMAND = job.module_command("osaurusd.imports.worker.quantize")

NO_TEMPLATE = "the model has no chat template: chats are plain text"

_IMPORTING = STAGING_PREFIXES[0]

_DEFAULT_BITS = 4


class ImportManager:
    """Imports and quantizes models into the catalog's `models/` folder.

    Attributes:
        running: the staging folders of running imports and quantizations.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._models_dir = catalog.models_dir
        self.running: set[Path] = set()
        self._names: set[str] = set()

    def sweep(self) -> None:
        """Remove unfinished imports of an earlier daemon. Blocks; requires the lock of the home."""
        for prefix in STAGING_PREFIXES:
            for leftover in self._models_dir.glob(f"{prefix}*"):
                log.info("removing unfinished import", path=str(leftover))
                shutil.rmtree(leftover, ignore_errors=True)

    async def run(
        self,
        source: str,
        name: str | None,
        files: str | None = None,
        origin: Origin | None = None,
        *,
        options: Sequence[str] = (),
    ) -> AsyncGenerator[messages.Event | ModelRecord]:
        """Import the folder or file `source`. Yields progress, notes and what quantization changed, then the model.

        Closing the iterator cancels the import.

        Args:
            source: the absolute path.
            name: the name of the model; None derives it from the source.
            files: the Unix socket from which the child process receives the open files of the source; None if it can
                open them itself.
            origin: what another program knows about the source.
            options: further options of the child process.

        Raises:
            InvalidRequest: the path is not absolute, or the name is invalid.
            NameTaken: a model with this name exists.
            ImportFailed: the source cannot be read or is rejected. No files remain.
        """
        path = _parse_path(source)
        arguments = [*_source_options(files, origin), *options, source]
        name = await self._free_name(_default_name(path, origin) if name is None else name)
        async with contextlib.aclosing(self._create(name, IMPORTER_COMMAND, arguments)) as events:
            try:
                async for event in events:
                    if isinstance(event, ModelRecord) and _lacks_template(event):
                        yield messages.Note(text=NO_TEMPLATE)
                    yield event
            except job.JobDied as error:
                raise ImportFailed(f"{path.name}: the import process exited unexpectedly ({error})") from error
            except _ChildFailed as error:
                raise ImportFailed(str(error)) from error

    async def quantize(
        self, base: ModelRecord, settings: messages.QuantizationSettings, name: str | None
    ) -> AsyncGenerator[messages.Event | ModelRecord]:
        """Quantize a model. Yields progress, then the new model. Closing the iterator cancels the quantization.

        Args:
            base: an available model.
            settings: how to quantize.
            name: the name of the new model; None derives it from the base and the settings.

        Raises:
            InvalidRequest: the name is invalid.
            NameTaken: a model with this name exists.
            QuantizationFailed: the model cannot be quantized with these settings. No files remain.
        """
        name = await self._free_name(names.of_quantization(base.name, _label(settings)) if name is None else name)
        provenance = await asyncio.to_thread(metadata.read_provenance, base)
        origin = messages.Base(name=base.repo, commit=provenance.commit, license=provenance.license)
        task = messages.QuantizationTask(settings=settings, base=origin)
        arguments = [msgspec.json.encode(task).decode(), str(base.path)]
        async with contextlib.aclosing(self._create(name, QUANTIZER_COMMAND, arguments)) as events:
            try:
                async for event in events:
                    yield event
            except job.JobDied as error:
                raise QuantizationFailed(f'model "{base.name}": the process exited unexpectedly ({error})') from error
            except _ChildFailed as error:
                raise QuantizationFailed(f'model "{base.name}" cannot be quantized: {error}') from error

    async def check(self, items: Sequence[CheckItem], files: str) -> list[CheckedModel]:
        """Find out from their headers which models can be imported.

        Args:
            items: the models.
            files: the Unix socket from which the child process receives their open files.

        Raises:
            InvalidRequest: `files` is not the path of a socket.
            ImportFailed: the files were not passed.
        """
        _check_socket(files)
        arguments = ["--files", files, msgspec.json.encode(items).decode()]
        try:
            async with contextlib.aclosing(job.run(CHECKER_COMMAND, arguments, messages.FROM_IMPORTER)) as frames:
                async for frame in frames:
                    if isinstance(frame, messages.Checked):
                        return frame.models
                    if isinstance(frame, messages.ImportFailure):
                        raise ImportFailed(frame.message)
        except job.JobDied as error:
            raise ImportFailed(f"the process that checks models exited unexpectedly ({error})") from error
        raise ImportFailed("the process that checks models exited without a result")

    async def _create(
        self, name: str, command: Sequence[str], arguments: Sequence[str]
    ) -> AsyncGenerator[messages.Event | ModelRecord]:
        """Run a child process that writes a staging folder, its last argument, and publish the folder as a model."""
        if name in self._names:
            raise NameTaken(f"the model `{name}` is being created; choose another name with --name", param="name")
        staging = self._models_dir / f"{_IMPORTING}{uuid.uuid4().hex}"
        self.running.add(staging)
        self._names.add(name)
        try:
            await asyncio.to_thread(staging.mkdir, parents=True)
            async with contextlib.aclosing(_run(command, [*arguments, str(staging)])) as events:
                async for event in events:
                    yield event
            record = await self._publish(staging, name)
        finally:
            # A client that disconnects meanwhile cancels this iterator, but not the release.
            await asyncio.shield(self._release(staging, name))
        yield record

    async def _release(self, staging: Path, name: str) -> None:
        """Remove what is left of a staging folder, and free the name."""
        try:
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
        finally:
            self.running.discard(staging)
            self._names.discard(name)

    async def _free_name(self, name: str) -> str:
        if not names.is_valid(name):
            raise InvalidRequest(
                f"`name`: {as_json(name)} is not a valid name; {names.NAME_RULE}",
                param="name",
            )
        await self._catalog.refresh()
        if any(name in (record.name, record.repo, *record.aliases) for record in await self._catalog.records()):
            raise NameTaken(f"a model `{name}` exists; choose another name with --name", param="name")
        return name

    async def _publish(self, staging: Path, name: str) -> ModelRecord:
        """Move the finished folder to its final name."""
        target = self._models_dir / name
        try:
            # Fails if a concurrent import took the name.
            await asyncio.to_thread(os.rename, staging, target)
        except OSError as error:
            raise NameTaken(f"the name `{name}` has been taken: {error.strerror}", param="name") from error
        try:
            await asyncio.to_thread(sync_folder, self._models_dir)
        except OSError as error:
            await self._remove(target)
            raise ImportFailed(f"{name}: {describe(error)}") from error
        record = await self._catalog.find_new(self._models_dir, lambda record: record.path == target)
        if record is None:
            raise ImportFailed(f"{name}: the model was written, but it is missing in {self._models_dir}")
        if record.state is not Availability.AVAILABLE:
            await self._remove(target)
            raise ImportFailed(f"{name}: {record.reason}")
        return record

    async def _remove(self, folder: Path) -> None:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await self._catalog.refresh()


class _ChildFailed(Exception):
    """A child process reported why it failed."""


def _parse_path(source: str) -> Path:
    path = Path(source)
    if not path.is_absolute() or "\0" in source:
        raise InvalidRequest(f"`path`: must be an absolute path, not {as_json(source)}", param="path")
    return path


def _check_socket(files: str) -> None:
    if not Path(files).is_absolute() or "\0" in files:
        raise InvalidRequest(
            f"`files`: must be the absolute path of a Unix socket, not {as_json(files)}", param="files"
        )


def _default_name(path: Path, origin: Origin | None) -> str:
    return names.of_path(path) if origin is None else names.of_origin(origin.name)


def _lacks_template(model: ModelRecord) -> bool:
    """Whether a language model has no chat template. Models that embed or rank texts need none."""
    return model.capabilities.completion and not model.capabilities.chat


def _source_options(files: str | None, origin: Origin | None) -> list[str]:
    """Return the options of the child process that say where the source comes from."""
    if files is not None:
        _check_socket(files)
    return [
        *(["--origin", msgspec.json.encode(origin).decode()] if origin is not None else []),
        *(["--files", files] if files is not None else []),
    ]


async def _run(command: Sequence[str], arguments: Sequence[str]) -> AsyncGenerator[messages.Event]:
    """Run a child process and yield its events until it has finished."""
    running = job.run(command, arguments, messages.FROM_IMPORTER, environment.converting())
    async with contextlib.aclosing(running) as frames:
        async for frame in frames:
            match frame:
                case messages.Progress() | messages.Note():
                    yield frame
                case messages.ImportFailure():
                    raise _ChildFailed(frame.message)
                case messages.Imported():
                    if frame.quantization is not None:
                        yield frame
                    return


def _label(settings: messages.QuantizationSettings) -> str:
    """Return the suffix by which published models name this quantization: `8bit` or `mxfp4`."""
    return f"{settings.bits or _DEFAULT_BITS}bit" if settings.mode is QuantizationMode.AFFINE else settings.mode
