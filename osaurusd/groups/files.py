"""The files of a model on a follower: those that it has, or a copy from the leader."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from osaurusd import config
from osaurusd.downloads.messages import Failure, Progress
from osaurusd.errors import DiskFull, LoadFailed, OsaurusError, PullFailed, from_code
from osaurusd.groups import manifest as manifests
from osaurusd.groups import messages
from osaurusd.groups.manifest import Manifests, select_files
from osaurusd.hosts.identity import IdentityFile
from osaurusd.hosts.registry import Host
from osaurusd.log import get_logger
from osaurusd.models import names
from osaurusd.models.catalog import Catalog
from osaurusd.models.copies import read_copy
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import COPYING_PREFIX
from osaurusd.rpc import job
from osaurusd.wire.files import replace_file
from osaurusd.wire.placement import Manifest, ManifestFile

log = get_logger(__name__)

COMMAND = job.module_command("osaurusd.groups.worker")

_MAX_CONNECTIONS = 4
_DIGEST_CHARACTERS = 16
_SUFFIX_CHARACTERS = 8

Report = Callable[[str, int, int], None]
"""Called with the stage, `verifying` or `fetching`, and the done and all bytes of it."""


class ModelFiles:
    """Makes sure that this host has the files of a model that another host distributes.

    Args:
        catalog: the models on this host.
        manifests: the digests of their files.
        options: returns the current `[pulls]` configuration.
        identity: that of this host.
    """

    def __init__(
        self, catalog: Catalog, manifests: Manifests, options: Callable[[], config.Pulls], identity: IdentityFile
    ) -> None:
        self._identity = identity
        self._catalog = catalog
        self._manifests = manifests
        self._options = options
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def active_folders(self) -> list[Path]:
        """The folders with partial files of running copies."""
        return [self._staging(digest) for digest, lock in self._locks.items() if lock.locked()]

    async def ensure(self, manifest: Manifest, leader: Host, only: range | None, report: Report) -> Path:
        """Return a folder with the files that a rank needs, all verified by their digests.

        Args:
            manifest: the files of the model on the leader.
            leader: where missing files are copied from.
            only: the layers of the rank; None for all.
            report: receives the progress.

        Raises:
            OsaurusError: the files cannot be copied. Received data is kept.
        """
        manifests.check(manifest)
        if not leader.url:
            raise LoadFailed(
                f'host "{leader.name}" accepts no connections, so that its files cannot be copied; set '
                "`distributed.listen` there and pair the hosts again"
            )
        needed = select_files(manifest, only)
        async with self._locks.setdefault(manifest.digest, asyncio.Lock()):
            if folder := await self._find(needed, report):
                return folder
            folder = await asyncio.to_thread(self._choose_folder, manifest)
            await self._copy(manifest, leader, needed, folder, report)
            await self._catalog.refresh()
            return folder

    async def _find(self, needed: Sequence[ManifestFile], report: Report) -> Path | None:
        """Return the folder of a model whose files are the needed ones."""
        await self._catalog.refresh()
        sizes = {(file.path, file.size) for file in needed}
        for record in await self._catalog.records():
            if not record.escapes and sizes <= set(record.files) and await self._has(record, needed, report):
                return record.path
        return None

    async def _has(self, record: ModelRecord, needed: Sequence[ManifestFile], report: Report) -> bool:
        try:
            own = await self._manifests.build(record, lambda done, total: report("verifying", done, total))
        except OsaurusError as error:
            log.warning("cannot use a model on disk", model=record.name, reason=error.message)
            return False
        return {(file.path, file.sha256) for file in needed} <= {(file.path, file.sha256) for file in own.files}

    def _choose_folder(self, manifest: Manifest) -> Path:
        """Return the folder for a copy: that of an earlier copy of the same model, or one that does not exist."""
        base = names.of_origin(manifest.model)
        suffix = manifest.digest[:_SUFFIX_CHARACTERS]
        self._catalog.models_dir.mkdir(parents=True, exist_ok=True)
        for name in (base, f"{base[: names.MAX_LENGTH - len(suffix) - 1]}-{suffix}"):
            folder = self._catalog.models_dir / name
            copy = read_copy(folder)
            if (copy and copy.digest == manifest.digest) or not folder.exists():
                return folder
        raise PullFailed(
            f'cannot copy the model: {folder} contains something else; remove it with "osaurusctl rm {folder.name}"'
        )

    async def _copy(
        self, manifest: Manifest, leader: Host, files: list[ManifestFile], folder: Path, report: Report
    ) -> None:
        """Run the process that copies, until all files are there."""
        options = self._options()
        staging = self._staging(manifest.digest)
        task = messages.CopyTask(
            host=leader,
            identity=str((await self._identity.get()).file),
            model=manifest.model,
            folder=str(folder),
            staging=str(staging),
            digest=manifest.digest,
            files=files,
            connections=min(options.connections, _MAX_CONNECTIONS),
            stall_seconds=options.stall_seconds,
            retry_seconds=options.retry_seconds,
            margin_bytes=options.disk_margin_bytes,
        )
        log.info("copying a model from another host", model=manifest.model, host=leader.name, folder=str(folder))
        received = _Received(report)
        try:
            await job.run_until_done(
                f"copy of {manifest.model}", lambda: self._run_process(task, staging, received), lambda: received.done
            )
        except job.JobDied as error:
            raise PullFailed(str(error)) from error

    async def _run_process(self, task: messages.CopyTask, staging: Path, received: "_Received") -> None:
        spec = await asyncio.to_thread(_write_task, task, staging)
        async with contextlib.aclosing(job.run(COMMAND, [str(spec)], messages.DECODER)) as frames:
            async for frame in frames:
                if isinstance(frame, Failure):
                    raise from_code(frame.code, frame.message)
                if isinstance(frame, messages.Copied):
                    return
                received.update(frame)
        raise job.JobDied("no result")

    def _staging(self, digest: str) -> Path:
        return self._catalog.models_dir / f"{COPYING_PREFIX}{digest[:_DIGEST_CHARACTERS]}"


class _Received:
    """The progress of all runs of the process."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.done = 0

    def update(self, frame: Progress) -> None:
        self.done = max(self.done, frame.done)
        self._report("fetching", frame.done, frame.total)


def _write_task(task: messages.CopyTask, staging: Path) -> Path:
    """Write the task of the process to a file: a list of files may be too long for an argument.

    Raises:
        OsaurusError: the disk is full or not writable.
    """
    path = staging / "task.json"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(task))
    except OSError as error:
        kind = DiskFull if error.errno == errno.ENOSPC else PullFailed
        raise kind(f"cannot copy the model: {path} cannot be written: {error.strerror or error}") from error
    return path
