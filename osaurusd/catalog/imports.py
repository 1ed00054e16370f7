"""Bringing models in: a child process converts or copies into a staging folder, which then becomes the model."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

from osaurusd import ipc
from osaurusd.catalog import names
from osaurusd.catalog.catalog import Catalog
from osaurusd.catalog.record import ModelRecord
from osaurusd.catalog.scan import STAGING_PREFIX
from osaurusd.errors import ImportFailed, InvalidRequest, NameTaken, OsaurusError
from osaurusd.log import get_logger
from osaurusd.wire.admin import ModelState

log = get_logger(__name__)

IMPORTER_COMMAND = (sys.executable, "-P", "-m", "osaurusd.worker.convert")


class Imports:
    """Imports into a catalog's `models/`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._models_dir = catalog.models_dir

    def sweep(self) -> None:
        """Remove what imports of an earlier daemon left unfinished. Blocking; only under the home's lock."""
        for leftover in self._models_dir.glob(f"{STAGING_PREFIX}*"):
            log.info("removing an unfinished import", path=str(leftover))
            shutil.rmtree(leftover, ignore_errors=True)

    async def run(self, source: str, name: str | None) -> AsyncGenerator[ipc.Progress | ModelRecord]:
        """Import the folder or file `source`; yields progress, then the model. Closing the iterator gives it up.

        Raises:
            InvalidRequest: the path is not absolute or the name cannot be one.
            NameTaken: a model of that name is here already.
            ImportFailed: the source cannot be read or is refused; nothing is left behind.
        """
        path = Path(source)
        if not path.is_absolute():
            raise InvalidRequest(f"`path`: an absolute path, not {source!r}", param="path")
        name = await self._free_name(path, name)
        staging = self._models_dir / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        await asyncio.to_thread(staging.mkdir, parents=True)
        try:
            async with contextlib.aclosing(_convert(path, staging)) as events:
                async for event in events:
                    yield event
            yield await self._settle(staging, name)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))

    async def _free_name(self, source: Path, name: str | None) -> str:
        name = names.from_file(source.stem if source.suffix == ".gguf" else source.name) if name is None else name
        if not names.is_valid(name):
            raise InvalidRequest(
                f"`name`: lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit, not {name!r}",
                param="name",
            )
        await self._catalog.refresh()
        if any(name in (record.name, record.repo) for record in await self._catalog.records()):
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
        record = next(record for record in await self._catalog.records() if record.repo == name)
        if record.state is not ModelState.AVAILABLE:
            await asyncio.to_thread(shutil.rmtree, record.path, ignore_errors=True)
            await self._catalog.refresh()
            raise ImportFailed(f"{name}: {record.reason}")
        return record


async def _convert(source: Path, staging: Path) -> AsyncGenerator[ipc.Progress]:
    """Run the importer; yields its progress until it has finished."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *IMPORTER_COMMAND,
            "--fd",
            str(theirs.fileno()),
            str(source),
            str(staging),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    stream, writer = await ipc.connect(ours.detach())
    reader = ipc.FrameReader(stream, ipc.FROM_IMPORTER)
    try:
        while isinstance(frame := await reader.read(), ipc.Progress):
            yield frame
        if not isinstance(frame, ipc.Imported):
            raise await _failure(frame, process, source)
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


async def _failure(frame: ipc.ImportFailure | None, process: asyncio.subprocess.Process, source: Path) -> OsaurusError:
    if frame is not None:
        return ImportFailed(frame.message)
    code = await process.wait()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ImportFailed(f"{source.name}: the importer died while reading it ({how})")
