"""Bringing models in: a child process converts or copies into a staging folder, which then becomes the model."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

from osaurusd.errors import ImportFailed, InvalidRequest, NameTaken
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import STAGING_PREFIXES
from osaurusd.rpc import child, messages
from osaurusd.wire.admin import ModelState

log = get_logger(__name__)

IMPORTER_COMMAND = (*child.PYTHON, "osaurusd.imports.worker")

_IMPORTING = STAGING_PREFIXES[0]


class Imports:
    """Imports into a catalog's `models/`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._models_dir = catalog.models_dir
        self.running: set[Path] = set()

    def sweep(self) -> None:
        """Remove what an earlier daemon left unfinished. Blocking; only under the home's lock."""
        for prefix in STAGING_PREFIXES:
            for leftover in self._models_dir.glob(f"{prefix}*"):
                log.info("removing what was left unfinished", path=str(leftover))
                shutil.rmtree(leftover, ignore_errors=True)

    async def run(self, source: str, name: str | None) -> AsyncGenerator[messages.Progress | ModelRecord]:
        """Import the folder or file `source`; yields progress, then the model. Closing the iterator gives it up.

        Raises:
            InvalidRequest: the path is not absolute or the name cannot be one.
            NameTaken: a model of that name is here already.
            ImportFailed: the source cannot be read or is refused; nothing is left behind.
        """
        path = Path(source)
        if not path.is_absolute() or "\0" in source:
            raise InvalidRequest(f"`path`: an absolute path, not {source!r}", param="path")
        name = await self._free_name(path, name)
        staging = self._models_dir / f"{_IMPORTING}{uuid.uuid4().hex}"
        self.running.add(staging)
        try:
            await asyncio.to_thread(staging.mkdir, parents=True)
            async with contextlib.aclosing(_convert(path, staging)) as events:
                async for event in events:
                    yield event
            yield await self._settle(staging, name)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))
            self.running.discard(staging)

    async def _free_name(self, source: Path, name: str | None) -> str:
        name = names.from_file(source.stem if source.suffix == ".gguf" else source.name) if name is None else name
        if not names.is_valid(name):
            raise InvalidRequest(
                f"`name`: lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit, not {name!r}",
                param="name",
            )
        await self._catalog.refresh()
        if any(name in (record.name, record.repo, *record.aliases) for record in await self._catalog.records()):
            raise NameTaken(f"there is a model `{name}` already; choose another name with --name", param="name")
        return name

    async def _settle(self, staging: Path, name: str) -> ModelRecord:
        """Make the finished folder the model `name`."""
        try:
            # Fails if an import that ran beside this one took the name.
            await asyncio.to_thread(os.rename, staging, self._models_dir / name)
        except OSError as error:
            raise NameTaken(f"the name `{name}` was taken meanwhile: {error.strerror}", param="name") from error
        await self._catalog.refresh()
        record = next(record for record in await self._catalog.records() if record.path == self._models_dir / name)
        if record.state is not ModelState.AVAILABLE:
            await asyncio.to_thread(shutil.rmtree, record.path, ignore_errors=True)
            await self._catalog.refresh()
            raise ImportFailed(f"{name}: {record.reason}")
        return record


async def _convert(source: Path, staging: Path) -> AsyncGenerator[messages.Progress]:
    """Run the importer; yields its progress until it has finished."""
    arguments = [str(source), str(staging)]
    try:
        async with contextlib.aclosing(child.frames(IMPORTER_COMMAND, arguments, messages.FROM_IMPORTER)) as frames:
            async for frame in frames:
                match frame:
                    case messages.Progress():
                        yield frame
                    case messages.ImportFailure():
                        raise ImportFailed(frame.message)
                    case messages.Imported():
                        return
    except child.ChildDied as error:
        raise ImportFailed(f"{source.name}: the importer died while reading it ({error})") from error
