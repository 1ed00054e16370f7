"""Where files lie until all of a model is there: a folder of ours in the cache, which no other tool looks into.

It is below `.locks`, the one folder of a Hugging Face cache that the hub's client passes over when it lists what there
is; so it is on the cache's own volume, wherever that is, and becoming part of the cache is a rename.
"""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from osaurusd.downloads.worker.choice import HubFile
from osaurusd.downloads.worker.failure import PullError
from osaurusd.models.roots import pulls_folder, repo_folder

_LOCK = "lock"


class Staging:
    """The files of one repo that have come or are coming.

    Args:
        cache: the Hugging Face cache.
        repo: `ORG/NAME`.
    """

    def __init__(self, cache: Path, repo: str) -> None:
        self.cache = cache
        self.folder = pulls_folder(cache) / repo_folder(cache, repo).name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else downloads this repo while the block runs; the lock goes with the process.

        Raises:
            PullError: another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PullError(f"{self.folder}: another process is downloading this model") from error
            yield
        finally:
            os.close(descriptor)

    def verified(self, file: HubFile) -> Path:
        """What a file is called once it has been hashed and found right."""
        return self.folder / f"{file.etag}.verified"

    def keep_only(self, files: Collection[HubFile]) -> None:
        """Remove what an earlier commit left that this one does not have."""
        etags = {file.etag for file in files}
        for path in self.folder.iterdir():
            if path.name != _LOCK and path.name.partition(".")[0] not in etags:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, which nothing is left in but the lock."""
        (self.folder / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
