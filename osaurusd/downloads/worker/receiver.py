"""Receiving and verifying single files into a staging folder."""

import asyncio
from collections.abc import Sequence

from osaurusd.downloads.worker.errors import PullError
from osaurusd.downloads.worker.partial import Partial
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.downloads.worker.staging import Staging
from osaurusd.downloads.worker.transfer import ProgressReporter, Transfer
from osaurusd.models.worker import verification
from osaurusd.models.worker.verification import Digest


class Receiver:
    """Receives files; each one that is complete and intact has the staging folder's `verified_path`.

    Args:
        staging: the folder.
        transfer: receives the bytes.
        progress: counts received and hashed bytes.
    """

    def __init__(self, staging: Staging, transfer: Transfer, progress: ProgressReporter) -> None:
        self._staging = staging
        self._transfer = transfer
        self._progress = progress

    async def obtain(self, file: HubFile) -> None:
        """Receive and verify a file; repeat once if its checksum is wrong.

        Raises:
            PullError: the file is not available, or has a wrong checksum again.
            OSError: the disk is full or not writable.
        """
        for _ in range(2):
            partial = Partial(self._staging.folder, file.etag, file.size)
            try:
                await self._transfer.receive(file, partial)
                intact = await self._is_intact(file, partial)
            except BaseException:
                partial.close()
                raise
            if intact:
                # Closes the files: the thread still uses them if this task is cancelled.
                await asyncio.to_thread(partial.finish, self._staging.verified_path(file))
                return
            partial.close()
            partial.remove()
            self._progress.present -= file.size
            self._progress.hashed -= file.size
        raise PullError(f"checksum mismatch of {file.name} after two attempts")

    async def _is_intact(self, file: HubFile, partial: Partial) -> bool:
        digest = Digest("sha256" if file.sha256 else "git", file.etag)
        reported = 0

        def report(done: int) -> None:
            nonlocal reported
            self._progress.hashed += done - reported
            reported = done

        value = await asyncio.to_thread(verification.hash_file, partial.data, file.size, digest, report)
        return value == digest.value


def start_progress(
    progress: ProgressReporter, staging: Staging, files: Sequence[HubFile], missing: Sequence[HubFile]
) -> None:
    """Count what is on the disk already: files that are not missing, and the received parts of others."""
    progress.to_hash = sum(file.size for file in missing)
    progress.present = sum(file.size for file in files) - progress.to_hash
    for file in missing:
        partial = Partial(staging.folder, file.etag, file.size)
        progress.present += partial.received
        partial.close()
