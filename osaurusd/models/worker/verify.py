"""Hashes a model's files and compares them with what the store recorded."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from osaurusd.models.worker import records
from osaurusd.models.worker.failure import StoreError, printable
from osaurusd.models.worker.records import Digest, Records
from osaurusd.rpc.messages import HashedFile
from osaurusd.wire.admin import FileState

Progress = Callable[[str, int, int], None]
"""Told the file that is read, the bytes done and the bytes to do."""

_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class _File:
    """A name in a model's folder. `size` is in bytes; `state` is there where it is known without reading."""

    name: str
    path: Path
    size: int
    digest: Digest | None
    state: FileState | None = None


def verify(snapshot: Path, record: Path | None, progress: Progress) -> list[HashedFile]:
    """How every file of a model compares with what was recorded of it, in the order of their names.

    Files that are missing are there too, with the size that they should have where that is known. The import's own
    record, `osaurus.json`, is no file of the model.

    Args:
        snapshot: the model's folder, in a Hugging Face cache or imported.
        record: what an import recorded, if not `osaurus.json` in the folder.
        progress: told of each piece of work.

    Raises:
        StoreError: there is no such folder, its record is damaged, or a file could not be read; the message names it.
        OSError: the folder or the record could not be read.
    """
    snapshot = Path(os.path.normpath(snapshot.absolute()))
    if not snapshot.is_dir():
        raise StoreError(f"{snapshot}: there is no such folder")
    recorded = records.read(snapshot, record)
    files = sorted(_files(snapshot, recorded), key=lambda file: file.name)
    total = sum(file.size for file in files if file.state is None)
    hashed = []
    done = 0
    for file in files:
        state = file.state
        if state is None:
            state = _compare(file, _Sum(progress, file.name, done, total))
            done += file.size
        hashed.append(HashedFile(name=file.name, bytes=file.size, state=state))
    return hashed


@dataclass(frozen=True)
class _Sum:
    """Turns bytes of one file into bytes of all; `before` is what the files before it have."""

    progress: Progress
    file: str
    before: int
    total: int

    def __call__(self, done: int) -> None:
        # A file that grows while it is read must not lead beyond the end.
        self.progress(self.file, min(self.before + done, self.total), self.total)


def _files(snapshot: Path, recorded: Records) -> Iterator[_File]:
    """The files in a model's folder, then those that should be there and are not."""
    found = set()
    for path in _walk(snapshot):
        if path == recorded.record:
            continue
        name = path.relative_to(snapshot).as_posix()
        found.add(name)
        yield replace(_look(path, name, recorded), name=printable(name))
    for name in sorted(recorded.needed.keys() - found):
        yield _File(name, snapshot / name, recorded.needed[name], None, FileState.MISSING)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders and links to them."""
    for parent, _, names in os.walk(folder, onerror=_refuse):
        yield from (Path(parent) / name for name in names)


def _refuse(error: OSError) -> None:
    raise error


def _look(path: Path, name: str, recorded: Records) -> _File:
    digest = recorded.digest(path, name)
    try:
        status = path.stat()
    except FileNotFoundError:
        return _File(name, path, recorded.needed.get(name, 0), digest, FileState.MISSING)
    if stat.S_ISREG(status.st_mode) and recorded.holds(path):
        return _File(name, path, status.st_size, digest)
    # What lies elsewhere is not followed, and a pipe would never end: neither can be what was stored here.
    return _File(name, path, 0, digest, FileState.CHANGED if digest else FileState.UNRECORDED)


def _compare(file: _File, progress: Callable[[int], None]) -> FileState:
    """Reads a file to its end, even if nothing is recorded of it: that it can be read is worth knowing."""
    try:
        found = hash_file(file.path, file.size, file.digest, progress)
    except OSError as error:
        raise StoreError(f"{file.name}: {error.strerror or error}") from error
    if file.digest is None:
        return FileState.UNRECORDED
    return FileState.INTACT if found == file.digest.value else FileState.CHANGED


def hash_file(path: Path, size: int, digest: Digest | None, progress: Callable[[int], None]) -> str:
    """What a file hashes to in hex, by the algorithm of `digest`.

    Args:
        path: the file.
        size: in bytes; git's hash begins with it.
        digest: None for SHA-256.
        progress: told the bytes done.

    Raises:
        OSError: the file could not be read.
    """
    summed = hashlib.sha256()
    if digest and digest.algorithm == "git":
        # How git names a blob: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        summed = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    progress(done)
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(_CHUNK_BYTES):
            summed.update(piece)
            done += len(piece)
            progress(done)
    return summed.hexdigest()
