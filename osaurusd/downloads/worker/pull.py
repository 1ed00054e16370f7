"""One pull, from the list of files to the snapshot in the cache."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # missing in the package's __all__

from osaurusd import __version__
from osaurusd.downloads import messages
from osaurusd.downloads.worker import hub, selection
from osaurusd.downloads.worker.client import create_async_client
from osaurusd.downloads.worker.errors import PullError, TransientError
from osaurusd.downloads.worker.receiver import Receiver, start_progress
from osaurusd.downloads.worker.selection import HubFile, Listing
from osaurusd.downloads.worker.snapshot import Snapshot
from osaurusd.downloads.worker.source import FileSource
from osaurusd.downloads.worker.staging import Staging, check_disk_space, write_error
from osaurusd.downloads.worker.transfer import Backoff, ProgressReporter, Transfer, TransferLimits, run_all
from osaurusd.rpc.child import Send, printable
from osaurusd.wire.pulls import PullStage


@dataclass(frozen=True)
class PullOptions:
    """What to pull, where to, and within which limits. `margin` is the number of bytes that must stay free."""

    cache: Path
    repo: str
    revision: str
    limits: TransferLimits
    margin: int


async def pull(options: PullOptions, send: Send) -> messages.Pulled | messages.Failure:
    """Download a model into the cache, resuming an earlier pull. After a failure, received data is kept.

    Args:
        options: the options of the pull.
        send: sends progress frames.
    """
    progress = ProgressReporter(send)
    reporting = asyncio.create_task(progress.run())
    try:
        listing = await _list_files(options, progress)
        return await _Pull(options, listing, progress).run()
    except PullError as error:
        return messages.Failure(code=error.code, message=printable(error.message))
    finally:
        reporting.cancel()


async def _list_files(options: PullOptions, progress: ProgressReporter) -> Listing:
    """List the repository's files, retrying while the hub is unavailable."""
    backoff = Backoff(options.limits.retry_seconds, progress.set_note)
    while True:
        try:
            listing = await asyncio.to_thread(hub.list_files, options.repo, options.revision)
        except TransientError as error:
            await backoff.wait(error)
        else:
            progress.note = None
            return listing


class _Pull:
    """The download of one commit."""

    def __init__(self, options: PullOptions, listing: Listing, progress: ProgressReporter) -> None:
        self._options = options
        self._listing = listing
        self._progress = progress
        self._staging = Staging.for_repo(options.cache, listing.repo)
        self._snapshot = Snapshot(options.cache, listing)
        self._cache = options.cache

    async def run(self) -> messages.Pulled:
        files = selection.select_files(self._listing)
        try:
            with self._staging.locked():
                self._staging.prepare(files)
                await self._download(files)
                self._progress.stage = PullStage.PLACING
                self._progress.report()
                await asyncio.to_thread(self._snapshot.install, self._staging, files, self._options.revision)
                self._staging.remove()
        except OSError as error:
            missing = self._progress.total - self._progress.present
            raise write_error(error, self._cache, missing, self._options.margin) from error
        return messages.Pulled(commit=self._listing.commit, bytes=sum(file.size for file in files))

    async def _download(self, files: Sequence[HubFile]) -> None:
        """Download and verify every file that is neither staged nor in the cache, metadata first."""
        # Files with the same content are downloaded once.
        missing = list({file.etag: file for file in files if not self._is_present(file)}.values())
        self._start_progress(files, missing)
        limits = self._options.limits
        async with create_async_client(limits.connections, limits.stall_seconds) as client:
            source = FileSource(client, constants.ENDPOINT, _hub_headers(), self._listing.repo, self._listing.commit)
            receiver = Receiver(self._staging, Transfer(source, limits, self._progress), self._progress)
            small = [file for file in missing if file.name in selection.METADATA_FILES]
            await run_all(receiver.obtain(file) for file in small)
            self._check_metadata(files)
            self._progress.total = sum(file.size for file in files)
            check_disk_space(self._cache, self._progress.total - self._progress.present, self._options.margin)
            await run_all(receiver.obtain(file) for file in missing if file not in small)

    def _is_present(self, file: HubFile) -> bool:
        staged = self._staging.verified_path(file)
        return staged.exists() or self._snapshot.find(file) is not None

    def _start_progress(self, files: Sequence[HubFile], missing: Sequence[HubFile]) -> None:
        progress = self._progress
        progress.stage, progress.commit = PullStage.DOWNLOADING, self._listing.commit
        start_progress(progress, self._staging, files, missing)

    def _check_metadata(self, files: Sequence[HubFile]) -> None:
        contents = {}
        for file in files:
            if file.name in selection.METADATA_FILES:
                staged = self._staging.verified_path(file)
                path = staged if staged.exists() else self._snapshot.find(file)
                contents[file.name] = (path or staged).read_bytes()
        selection.check_metadata(self._listing.repo, [file.name for file in files], contents)


def _hub_headers() -> dict[str, str]:
    """Return the headers of huggingface_hub, with the token from HF_TOKEN or the stored one."""
    headers: dict[str, str] = build_hf_headers(library_name="osaurusd", library_version=__version__)
    return headers
