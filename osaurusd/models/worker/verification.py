"""Verifying a model: hashing its files and comparing them with the digests recorded at download or import."""

import fnmatch
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from osaurusd.models.metadata import IMPORT_RECORD
from osaurusd.models.worker.files import StoreError, walk_files
from osaurusd.rpc.child import printable
from osaurusd.wire import model_files
from osaurusd.wire.admin import FileState, VerifiedFile

Progress = Callable[[str, int, int], None]
"""Called with the current file, the bytes hashed and the total bytes."""

_CHUNK_BYTES = 4 * 1024 * 1024

# The version of the file lists in `trees/` that `huggingface_hub/_tree_cache.py` writes.
_TREE_FORMAT = 1

# What mlx_lm loads a model from (`DEFAULT_ALLOW_PATTERNS` in mlx_lm/utils.py), without code and documentation.
_REQUIRED = (
    *("model*.safetensors", "*.json", "*.jinja"),
    *("tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"),
)


@dataclass(frozen=True)
class Digest:
    """The expected digest of a file; `git` is SHA-1 over git's header `blob SIZE\\0` and the content."""

    algorithm: Literal["sha256", "git"]
    value: str


@dataclass(frozen=True)
class _Manifest:
    """What was recorded about a model's files.

    Attributes:
        digests: by file name.
        required: sizes in bytes of the files that must exist, by name; 0 if the size was not recorded.
        roots: folders that links may lead into.
        record: the import's record, which is not itself part of the model.
        blobs: the folder of blobs, for a model in the Hugging Face cache.
    """

    digests: Mapping[str, Digest]
    required: Mapping[str, int]
    roots: tuple[str, ...]
    record: Path | None = None
    blobs: Path | None = None

    def digest_of(self, path: Path, name: str) -> Digest | None:
        """Return the recorded digest of the file `name` at `path`, or None.

        Raises:
            OSError: the file's link cannot be read.
        """
        if name in self.digests or self.blobs is None or not path.is_symlink():
            return self.digests.get(name)
        # The first link names the blob, which may itself be a link into the store that repositories share.
        target = Path(os.path.normpath(path.parent / path.readlink()))
        return _digest_from_blob_name(target.name) if target.parent == self.blobs else None

    def contains(self, path: Path) -> bool:
        """Whether `path` leads to a place inside the model's folders."""
        target = os.path.realpath(path)
        return any(target.startswith(root + os.sep) for root in self.roots)


@dataclass(frozen=True)
class _File:
    """A file to compare. `state` is set if it is known without reading the file."""

    name: str
    path: Path
    size: int
    digest: Digest | None
    state: FileState | None = None


def verify(snapshot: Path, record: Path | None, progress: Progress) -> list[VerifiedFile]:
    """Compare every file of a model with its recorded digest; missing files are included. Sorted by name.

    Args:
        snapshot: the model's folder, in a Hugging Face cache or imported.
        record: the record of the import, if it is not `osaurus.json` in the folder.
        progress: called for each chunk.

    Raises:
        StoreError: the folder does not exist, its record is invalid, or a file cannot be read.
        OSError: the folder or the record cannot be read.
    """
    snapshot = Path(os.path.normpath(snapshot.absolute()))
    if not snapshot.is_dir():
        raise StoreError(f"{snapshot} does not exist")
    files = sorted(_list_files(snapshot, _read_manifest(snapshot, record)), key=lambda file: file.name)
    total = sum(file.size for file in files if file.state is None)
    verified = []
    done = 0
    for file in files:
        state = file.state
        if state is None:
            state = _compare(file, _total_progress(progress, file.name, done, total))
            done += file.size
        verified.append(VerifiedFile(name=file.name, bytes=file.size, state=state))
    return verified


def hash_files(folder: Path, names: Sequence[str], progress: Progress) -> dict[str, str]:
    """Return the SHA-256 of files in a model's folder, by name.

    Raises:
        OSError: a file cannot be read.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    total, done = sum(sizes.values()), 0
    digests = {}
    for name, size in sizes.items():
        digests[name] = hash_file(folder / name, size, None, _total_progress(progress, name, done, total))
        done += size
    return digests


def hash_file(path: Path, size: int, digest: Digest | None, progress: Callable[[int], None]) -> str:
    """Return the hex digest of a file, by the algorithm of `digest`.

    Args:
        path: the file.
        size: in bytes; git's hash includes it.
        digest: None for SHA-256.
        progress: called with the bytes hashed so far.

    Raises:
        OSError: the file cannot be read.
    """
    hasher = hashlib.sha256()
    if digest and digest.algorithm == "git":
        # Git's blob ids: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    progress(done)
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            progress(done)
    return hasher.hexdigest()


def _total_progress(progress: Progress, name: str, offset: int, total: int) -> Callable[[int], None]:
    """Return a function that turns the bytes of one file into bytes of all files."""

    def report(done: int) -> None:
        # A file that grows meanwhile must not exceed the total.
        progress(name, min(offset + done, total), total)

    return report


def _list_files(snapshot: Path, manifest: _Manifest) -> Iterator[_File]:
    """Yield the files in a model's folder, then required files that do not exist."""
    names = set()
    for path in walk_files(snapshot):
        if path == manifest.record:
            continue
        name = path.relative_to(snapshot).as_posix()
        names.add(name)
        yield replace(_stat_file(path, name, manifest), name=printable(name))
    for name in sorted(manifest.required.keys() - names):
        yield _File(name, snapshot / name, manifest.required[name], None, FileState.MISSING)


def _stat_file(path: Path, name: str, manifest: _Manifest) -> _File:
    digest = manifest.digest_of(path, name)
    try:
        status = path.stat()
    except FileNotFoundError:
        return _File(name, path, manifest.required.get(name, 0), digest, FileState.MISSING)
    if stat.S_ISREG(status.st_mode) and manifest.contains(path):
        return _File(name, path, status.st_size, digest)
    # Links to other places are not followed, and a pipe has no end. Neither can be an original file.
    return _File(name, path, 0, digest, FileState.CHANGED if digest else FileState.UNRECORDED)


def _compare(file: _File, progress: Callable[[int], None]) -> FileState:
    """Hash a file. Files without a digest are read as well, to find read errors."""
    try:
        value = hash_file(file.path, file.size, file.digest, progress)
    except OSError as error:
        raise StoreError(f"cannot read {file.name}: {error.strerror or error}") from error
    if file.digest is None:
        return FileState.UNRECORDED
    return FileState.INTACT if value == file.digest.value else FileState.CHANGED


class _TreeFile(msgspec.Struct):
    size: int
    blob_id: str
    lfs_sha256: str | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _TreeFile]


def _read_manifest(snapshot: Path, record: Path | None) -> _Manifest:
    """Read what was recorded about the model in the folder `snapshot`.

    A folder in a Hugging Face cache is named `.../models--ORG--NAME/snapshots/COMMIT`.
    """
    repo = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and repo.name.startswith("models--"):
        return _manifest_from_cache(repo, snapshot)
    return _manifest_from_import(snapshot, record or snapshot / IMPORT_RECORD)


def _manifest_from_cache(repo: Path, snapshot: Path) -> _Manifest:
    tree = _read_tree(repo / "trees" / f"{snapshot.name}.json")
    digests = {name: _digest_from_blob_name(file.lfs_sha256 or file.blob_id) for name, file in tree.items()}
    # The last root is the store that repositories share: `huggingface_hub/utils/_shared_blobs.py`.
    roots = (repo, repo / "blobs", repo.parent / "blobs")
    return _Manifest(
        digests={name: digest for name, digest in digests.items() if digest is not None},
        required={name: file.size for name, file in tree.items() if _is_required(name)},
        roots=tuple(os.path.realpath(root) for root in roots),
        blobs=repo / "blobs",
    )


def _read_tree(path: Path) -> Mapping[str, _TreeFile]:
    """Return the hub's list of a revision's files as huggingface_hub stores it; empty if there is no valid one."""
    try:
        tree = msgspec.json.decode(path.read_bytes(), type=_Tree)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return tree.files if tree.format_version == _TREE_FORMAT else {}


def _digest_from_blob_name(name: str) -> Digest | None:
    """Return the digest in a blob's name: SHA-256 for LFS files, git's object id for others."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Digest("sha256", name)
    if re.fullmatch(r"[0-9a-f]{40}", name):
        return Digest("git", name)
    return None


def _is_required(name: str) -> bool:
    # Optional files may be absent after a download with patterns. Of subfolders, only modules are read.
    if model_files.is_module_file(name):
        return True
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in _REQUIRED)


def _manifest_from_import(folder: Path, record: Path) -> _Manifest:
    digests = {name: Digest("sha256", value) for name, value in _read_import_record(record).items()}
    return _Manifest(
        digests=digests,
        required=dict.fromkeys(digests, 0),
        roots=(os.path.realpath(folder),),
        record=record,
    )


def _read_import_record(record: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that an import wrote; empty if it recorded none."""
    try:
        document: Any = json.loads(record.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise StoreError(f"{record.name} is not valid JSON") from None
    files = document.get("files", {}) if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise StoreError(f"{record.name}: `files` must map file names to digests")
    return files
