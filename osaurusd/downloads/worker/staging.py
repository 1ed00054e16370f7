"""The staging folder of a download, and the disk space that it needs."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from osaurusd.downloads.worker.errors import PullError
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.models.roots import pulls_folder, repo_folder
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.files import is_disk_full
from osaurusd.wire.sizes import format_bytes

_LOCK = "lock"


class Staging:
    """A folder with the partial and verified files of one model.

    It is on the same volume as the files' final place, so that installing one is a rename.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def for_repo(cls, cache: Path, repo: str) -> "Staging":
        """Return the folder for the repository `ORG/NAME` in a Hugging Face cache."""
        return cls(pulls_folder(cache) / repo_folder(cache, repo).name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from downloading this model; the lock is released when the process exits.

        Raises:
            PullError: another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PullError(f"another process is downloading this model: {self.folder} is locked") from error
            yield
        finally:
            os.close(descriptor)

    def verified_path(self, file: HubFile) -> Path:
        """Return the path of a file whose checksum has been verified."""
        return self.folder / f"{file.etag}.verified"

    def prepare(self, files: Collection[HubFile]) -> None:
        """Remove unfinished snapshots, and files of an earlier commit that are not among `files`."""
        etags = {file.etag for file in files}
        for path in self.folder.iterdir():
            if path.name == _LOCK or path.name.partition(".")[0] in etags:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, which is empty except for the lock."""
        (self.folder / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def check_disk_space(folder: Path, missing: int, margin: int) -> None:
    """Check that a download fits on the disk.

    Args:
        folder: a folder on the disk.
        missing: bytes that are not downloaded yet.
        margin: bytes that must stay free.

    Raises:
        PullError: the download does not fit.
    """
    free = shutil.disk_usage(folder).free
    if missing and missing + margin > free:
        raise PullError(
            f"not enough disk space in {folder}: {format_bytes(missing)} are missing, {format_bytes(free)} are free, "
            f"and {format_bytes(margin)} must stay free; free up {format_bytes(missing + margin - free)}",
            ErrorCode.DISK_FULL,
        )


def write_error(error: OSError, folder: Path, missing: int, margin: int, retry: str = "pull again") -> PullError:
    """Convert an error of a write into one that states how much space to free.

    Args:
        error: the error.
        folder: a folder on the disk.
        missing: bytes that are not downloaded yet.
        margin: bytes that must stay free.
        retry: what resumes the download.
    """
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        return PullError(f"cannot write to {folder}: {reason}; check the limit on file sizes", ErrorCode.DISK_FULL)
    if not is_disk_full(error):
        return PullError(f"{error.filename or folder}: {reason}")
    short = max(missing + margin - shutil.disk_usage(folder).free, 0)
    return PullError(
        f"the disk with {folder} is full: {format_bytes(missing)} are missing; free up {format_bytes(short)} and "
        f"{retry} to resume",
        ErrorCode.DISK_FULL,
    )
