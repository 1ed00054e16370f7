"""Installing verified files as a snapshot in the Hugging Face cache. Blocking.

For the layout see https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Blobs are installed first, then the
snapshot as a whole folder, then the ref, so that other programs see either no snapshot or a complete one. On a disk
without symbolic links the snapshot contains the files themselves, as huggingface_hub places them.
"""

import json
import secrets
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from huggingface_hub.file_download import are_symlinks_supported
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # missing in the package's __all__

from osaurusd.downloads.worker import selection
from osaurusd.downloads.worker.selection import HubFile, Listing
from osaurusd.downloads.worker.staging import Staging
from osaurusd.models.roots import repo_folder
from osaurusd.wire.files import replace_file, sync_folder

_TREE_FORMAT = 1


class Snapshot:
    """One commit of a repository in the cache.

    Args:
        cache: the Hugging Face cache.
        listing: the files of the commit.
    """

    def __init__(self, cache: Path, listing: Listing) -> None:
        self._cache, self._listing = cache, listing
        self._root = repo_folder(cache, listing.repo)
        self._folder = self._root / "snapshots" / listing.commit

    def find(self, file: HubFile) -> Path | None:
        """Return where the cache has a file's content with the expected size, or None."""
        paths = (self._blob(file), self._folder / file.name)
        return next((path for path in paths if _has_size(path, file.size)), None)

    def install(self, staging: Staging, files: Sequence[HubFile], revision: str) -> None:
        """Install a model whose files are all verified, in `staging` or already in the cache.

        Raises:
            OSError: the cache cannot be written, or a file has disappeared.
        """
        listing = self._listing
        (self._root / "blobs").mkdir(parents=True, exist_ok=True)
        if self._uses_links:
            for file in files:
                self._install_blob(staging, file)
        # The config comes last: without it, the folder is not a model yet.
        files = sorted(files, key=lambda file: file.name == selection.CONFIG)
        if selection.is_complete_for_mlx_lm(listing, files):
            # If the list contained missing files, huggingface_hub would consider the snapshot incomplete when offline.
            _write(self._root / "trees" / f"{listing.commit}.json", _encode_tree(listing))
        if self._uses_links:
            self._place_links(staging, files)
        else:
            self._place_files(staging, files)
        sync_folder(self._root / "snapshots")
        if revision != listing.commit:
            _write(self._root / "refs" / revision, listing.commit.encode())
        _mark_as_cache(self._cache)

    @cached_property
    def _uses_links(self) -> bool:
        """Whether the cache can contain links, found out by creating one."""
        with warnings.catch_warnings(action="ignore"):
            return are_symlinks_supported(self._cache)

    def _blob(self, file: HubFile) -> Path:
        return self._root / "blobs" / file.etag

    def _lock(self, file: HubFile) -> Path:
        """Return the lock that huggingface_hub holds while it downloads the file."""
        lock = self._cache / ".locks" / self._root.name / f"{file.etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock

    def _install_blob(self, staging: Staging, file: HubFile) -> None:
        verified, blob = staging.verified_path(file), self._blob(file)
        with WeakFileLock(self._lock(file)):
            if _has_size(blob, file.size):
                verified.unlink(missing_ok=True)
            else:
                verified.replace(blob)

    def _place_links(self, staging: Staging, files: Sequence[HubFile]) -> None:
        """Create the snapshot's links in one step; if another program has begun the snapshot, complete it."""
        temporary = staging.folder / f"snapshot-{secrets.token_hex(4)}"
        if self._folder.is_dir():
            for file in files:
                temporary.symlink_to(_link_target(file))
                temporary.replace(_create_parent(self._folder / file.name))
            return
        temporary.mkdir()
        for file in files:
            _create_parent(temporary / file.name).symlink_to(_link_target(file))
        self._folder.parent.mkdir(exist_ok=True)
        temporary.rename(self._folder)

    def _place_files(self, staging: Staging, files: Sequence[HubFile]) -> None:
        """Move the files themselves into the snapshot. A later pull finds those that are already there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unplaced = Counter(file.etag for file in files)
        for file in files:
            unplaced[file.etag] -= 1
            verified, target = staging.verified_path(file), _create_parent(self._folder / file.name)
            with WeakFileLock(self._lock(file)):
                if verified.exists() and not unplaced[file.etag]:
                    verified.replace(target)
                elif not _has_size(target, file.size):
                    temporary = staging.folder / f"copy-{secrets.token_hex(4)}"
                    shutil.copyfile(verified if verified.exists() else self._blob(file), temporary)
                    temporary.replace(target)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _create_parent(path: Path) -> Path:
    """Create the folder of a file, which may be a subfolder of the snapshot; return the path of the file."""
    path.parent.mkdir(exist_ok=True)
    return path


def _link_target(file: HubFile) -> str:
    """Return the text of a link to the blob, relative to the folder of the link."""
    return "/".join([*[".."] * (file.name.count("/") + 2), "blobs", file.etag])


def _encode_tree(listing: Listing) -> bytes:
    """Encode the file list of a commit in the format of `huggingface_hub/_tree_cache.py`, for use when offline."""
    entries = {}
    for file in sorted(listing.files, key=lambda file: file.name):
        entry: dict[str, object] = {"size": file.size, "blob_id": file.blob_id}
        if file.sha256 is not None:
            entry |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
        if file.xet_hash is not None:
            entry["xet_hash"] = file.xet_hash
        entries[file.name] = entry
    return json.dumps({"format_version": _TREE_FORMAT, "files": entries}, indent=1).encode()


def _write(path: Path, content: bytes) -> None:
    """Write a file with its folder's permissions, since users may share the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, mode=path.parent.stat().st_mode & 0o666)


def _mark_as_cache(cache: Path) -> None:
    """Mark the cache for backup programs to skip: https://bford.info/cachedir/."""
    tag = cache / "CACHEDIR.TAG"
    if not tag.exists():
        tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of downloaded models.\n")
