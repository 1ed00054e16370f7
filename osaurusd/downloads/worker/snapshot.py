"""Installing verified files as a snapshot in the Hugging Face cache. Blocking.

For the layout see https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Blobs are installed first, then the
snapshot as a whole folder, then the ref, so that other programs see either no snapshot or a complete one.
"""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # missing in the package's __all__

from osaurusd.downloads.worker import selection
from osaurusd.downloads.worker.selection import HubFile, Listing
from osaurusd.downloads.worker.staging import Staging
from osaurusd.models.roots import repo_folder
from osaurusd.platform.files import replace_file, sync_folder

_TREE_FORMAT = 1


def blob_path(cache: Path, repo: str, file: HubFile) -> Path:
    """Return where the cache keeps a file's content."""
    return repo_folder(cache, repo) / "blobs" / file.etag


def has_blob(cache: Path, repo: str, file: HubFile) -> bool:
    """Whether the cache has a file's content with the expected size."""
    try:
        return blob_path(cache, repo, file).stat().st_size == file.size
    except OSError:
        return False


def install_snapshot(staging: Staging, listing: Listing, files: Sequence[HubFile], revision: str) -> None:
    """Install a model whose files are all verified, in `staging` or already in the cache.

    Raises:
        OSError: the cache cannot be written, or a file has disappeared.
    """
    cache, root = staging.cache, repo_folder(staging.cache, listing.repo)
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for file in files:
        _install_blob(staging, listing.repo, file)
    if selection.is_complete_for_mlx_lm(listing, files):
        # If the list contained missing files, huggingface_hub would consider the snapshot incomplete when offline.
        _write(root / "trees" / f"{listing.commit}.json", _encode_tree(listing))
    _link_files(root / "snapshots" / listing.commit, files, staging.folder / f"snapshot-{secrets.token_hex(4)}")
    sync_folder(root / "snapshots")
    if revision != listing.commit:
        _write(root / "refs" / revision, listing.commit.encode())
    _mark_as_cache(cache)


def _install_blob(staging: Staging, repo: str, file: HubFile) -> None:
    verified, target = staging.verified_path(file), blob_path(staging.cache, repo, file)
    # The lock that huggingface_hub holds while it downloads the blob.
    lock = staging.cache / ".locks" / target.parents[1].name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if has_blob(staging.cache, repo, file):
            verified.unlink(missing_ok=True)
        else:
            verified.replace(target)


def _link_files(snapshot: Path, files: Sequence[HubFile], temporary: Path) -> None:
    """Create the snapshot's links in one step; if another program has begun the snapshot, complete it."""
    if snapshot.is_dir():
        # The config comes last: without it, the folder is not a model yet.
        for file in sorted(files, key=lambda file: file.name == selection.CONFIG):
            link = temporary.with_name(f"{temporary.name}.link")
            link.symlink_to(_link_target(file))
            link.replace(snapshot / file.name)
        return
    temporary.mkdir()
    for file in files:
        (temporary / file.name).symlink_to(_link_target(file))
    snapshot.parent.mkdir(exist_ok=True)
    temporary.rename(snapshot)


def _link_target(file: HubFile) -> str:
    return os.path.join("..", "..", "blobs", file.etag)  # noqa: PTH118  the text of a link, relative to the snapshot


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
