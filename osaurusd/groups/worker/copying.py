"""Copying the files of a model from another host, into a folder that becomes a model in one step."""

import asyncio
import shutil
from pathlib import Path

from osaurusd.downloads.worker.receiver import Receiver, start_progress
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.downloads.worker.staging import Staging, check_disk_space, write_error
from osaurusd.downloads.worker.transfer import ProgressReporter, Transfer, TransferLimits, run_all
from osaurusd.groups.messages import Copied, CopyTask
from osaurusd.groups.worker.host_source import HostSource, create_client
from osaurusd.models.copies import Copy, encode_record
from osaurusd.models.metadata import IMPORT_RECORD, read_recorded_digests
from osaurusd.rpc.child import Send
from osaurusd.wire.files import replace_file, sync_folder
from osaurusd.wire.pulls import PullStage

# A folder is not a model without it, so it is installed last.
_CONFIG = "config.json"

_MODEL = "model"


async def copy(task: CopyTask, send: Send) -> Copied:
    """Copy the files that the folder lacks, resuming an earlier copy. After a failure, received data is kept.

    Raises:
        PullError: the files cannot be copied.
    """
    progress = ProgressReporter(send)
    reporting = asyncio.create_task(progress.run())
    try:
        return await _Copying(task, progress).run()
    finally:
        reporting.cancel()


class _Copying:
    def __init__(self, task: CopyTask, progress: ProgressReporter) -> None:
        self._task = task
        self._progress = progress
        self._staging = Staging(Path(task.staging))
        self._folder = Path(task.folder)
        self._files = [
            HubFile(name=file.path, size=file.size, blob_id=file.sha256, sha256=file.sha256) for file in task.files
        ]

    async def run(self) -> Copied:
        try:
            with self._staging.locked():
                self._staging.prepare(self._files)
                await self._receive()
                self._progress.stage = PullStage.PLACING
                self._progress.report()
                await asyncio.to_thread(self._install)
                self._staging.remove()
        except OSError as error:
            missing = self._progress.total - self._progress.present
            margin = self._task.margin_bytes
            raise write_error(error, self._staging.folder.parent, missing, margin, "load the model again") from error
        return Copied()

    async def _receive(self) -> None:
        task, progress = self._task, self._progress
        # Files with the same content are received once.
        missing = list({file.etag: file for file in self._files if not self._is_present(file)}.values())
        progress.stage = PullStage.DOWNLOADING
        start_progress(progress, self._staging, self._files, missing)
        progress.total = sum(file.size for file in self._files)
        check_disk_space(self._staging.folder, progress.total - progress.present, task.margin_bytes)
        limits = TransferLimits(task.connections, task.stall_seconds, task.retry_seconds)
        async with create_client(task) as client:
            receiver = Receiver(self._staging, Transfer(HostSource(client, task), limits, progress), progress)
            await run_all(receiver.obtain(file) for file in missing)

    def _is_present(self, file: HubFile) -> bool:
        return self._staging.verified_path(file).exists() or self._is_installed(file)

    def _is_installed(self, file: HubFile) -> bool:
        """Whether the folder has a file. An earlier copy has verified what the folder's record lists."""
        recorded = read_recorded_digests(self._folder).get(file.name)
        path = self._folder / file.name
        return recorded == file.sha256 and path.is_file() and path.stat().st_size == file.size

    def _install(self) -> None:
        """Move the verified files into the folder.

        Raises:
            OSError: a file cannot be moved.
        """
        if self._folder.is_dir():
            self._place(self._folder)
            self._write_record(self._folder)
            return
        # Renamed as a whole, so that the model is either complete or does not exist.
        temporary = self._staging.folder / _MODEL
        temporary.mkdir()
        self._place(temporary)
        self._write_record(temporary)
        temporary.rename(self._folder)
        sync_folder(self._folder.parent)

    def _place(self, folder: Path) -> None:
        remaining = [file for file in self._files if not self._is_installed(file)]
        for file in sorted(remaining, key=lambda file: file.name == _CONFIG):
            target = folder / file.name
            target.parent.mkdir(exist_ok=True)
            verified = self._staging.verified_path(file)
            if sum(each.etag == file.etag for each in remaining) > 1:
                shutil.copyfile(verified, target)
            else:
                verified.replace(target)
        for file in remaining:
            self._staging.verified_path(file).unlink(missing_ok=True)
        sync_folder(folder)

    def _write_record(self, folder: Path) -> None:
        digests = read_recorded_digests(folder) | {file.name: file.sha256 or "" for file in self._files}
        copy = Copy(host=self._task.host.name, model=self._task.model, digest=self._task.digest)
        replace_file(folder / IMPORT_RECORD, encode_record(copy, digests), mode=0o644)
