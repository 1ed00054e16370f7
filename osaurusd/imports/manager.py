"""Importing models: a child process converts or copies into a staging folder, which then becomes the model."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from osaurusd.errors import ImportFailed, InvalidRequest, NameTaken
from osaurusd.imports import messages
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import STAGING_PREFIXES
from osaurusd.rpc import job
from osaurusd.wire.admin import Availability

log = get_logger(__name__)

IMPORTER_COMMAND = job.module_command("osaurusd.imports.worker")

_IMPORTING = STAGING_PREFIXES[0]


class ImportManager:
    """Imports models into the catalog's `models/` folder.

    Attributes:
        running: the staging folders of running imports.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._models_dir = catalog.models_dir
        self.running: set[Path] = set()

    def sweep(self) -> None:
        """Remove unfinished imports of an earlier daemon. Blocks; requires the lock of the home."""
        for prefix in STAGING_PREFIXES:
            for leftover in self._models_dir.glob(f"{prefix}*"):
                log.info("removing unfinished import", path=str(leftover))
                shutil.rmtree(leftover, ignore_errors=True)

    async def run(
        self, source: str, name: str | None, files: str | None = None, options: Sequence[str] = ()
    ) -> AsyncGenerator[messages.Progress | messages.Imported | ModelRecord]:
        """Import the folder or file `source`. Yields progress, what was imported, and the model.

        Closing the iterator cancels the import.

        Args:
            source: the absolute path.
            name: the name of the model; None derives it from the source.
            files: the Unix socket from which the child process receives the open files of the source; None if it can
                open them itself.
            options: further options of the child process.

        Raises:
            InvalidRequest: the path is not absolute, or the name is invalid.
            NameTaken: a model with this name exists.
            ImportFailed: the source cannot be read or is rejected. No files remain.
        """
        path = Path(source)
        if not path.is_absolute() or "\0" in source:
            raise InvalidRequest(f"`path`: must be an absolute path, not {source!r}", param="path")
        if files is not None and (not Path(files).is_absolute() or "\0" in files):
            raise InvalidRequest(f"`files`: must be the absolute path of a Unix socket, not {files!r}", param="files")
        name = await self._free_name(path, name)
        staging = self._models_dir / f"{_IMPORTING}{uuid.uuid4().hex}"
        self.running.add(staging)
        try:
            await asyncio.to_thread(staging.mkdir, parents=True)
            async with contextlib.aclosing(_convert(path, staging, files, options)) as events:
                async for event in events:
                    yield event
            yield await self._publish(staging, name)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))
            self.running.discard(staging)

    async def _free_name(self, source: Path, name: str | None) -> str:
        name = names.from_file(source.stem if source.suffix == ".gguf" else source.name) if name is None else name
        if not names.is_valid(name):
            raise InvalidRequest(
                f"`name`: {name!r} is not a valid name; {names.NAME_RULE}",
                param="name",
            )
        await self._catalog.refresh()
        if any(name in (record.name, record.repo, *record.aliases) for record in await self._catalog.records()):
            raise NameTaken(f"a model `{name}` exists; choose another name with --name", param="name")
        return name

    async def _publish(self, staging: Path, name: str) -> ModelRecord:
        """Move the finished folder to its final name."""
        try:
            # Fails if a concurrent import took the name.
            await asyncio.to_thread(os.rename, staging, self._models_dir / name)
        except OSError as error:
            raise NameTaken(f"the name `{name}` has been taken: {error.strerror}", param="name") from error
        await self._catalog.refresh()
        record = next(record for record in await self._catalog.records() if record.path == self._models_dir / name)
        if record.state is not Availability.AVAILABLE:
            await asyncio.to_thread(shutil.rmtree, record.path, ignore_errors=True)
            await self._catalog.refresh()
            raise ImportFailed(f"{name}: {record.reason}")
        return record


async def _convert(
    source: Path, staging: Path, files: str | None, options: Sequence[str]
) -> AsyncGenerator[messages.Progress | messages.Imported]:
    """Run the child process and yield its progress until it has finished."""
    arguments = [*options, *(["--files", files] if files is not None else []), str(source), str(staging)]
    try:
        async with contextlib.aclosing(job.run(IMPORTER_COMMAND, arguments, messages.FROM_IMPORTER)) as frames:
            async for frame in frames:
                match frame:
                    case messages.Progress():
                        yield frame
                    case messages.ImportFailure():
                        raise ImportFailed(frame.message)
                    case messages.Imported():
                        if frame.quantization is not None:
                            yield frame
                        return
    except job.JobDied as error:
        raise ImportFailed(f"{source.name}: the import process exited unexpectedly ({error})") from error
