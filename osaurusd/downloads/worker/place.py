"""Makes verified files a snapshot in the Hugging Face cache, as huggingface_hub lays it out; blocking.

The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Blobs come first, then the snapshot as a
whole folder, then the ref: whoever looks at the cache in between sees no snapshot, or one that is complete.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported by import alone

from osaurusd.downloads.worker import choice
from osaurusd.downloads.worker.choice import HubFile, Listing
from osaurusd.downloads.worker.staging import Staging
from osaurusd.models.roots import repo_folder

_TREE_FORMAT = 1


def blob(cache: Path, repo: str, file: HubFile) -> Path:
    """Where the cache keeps a file's content."""
    return repo_folder(cache, repo) / "blobs" / file.etag


def is_here(cache: Path, repo: str, file: HubFile) -> bool:
    """Whether the cache has a file's content, as long as it should be."""
    try:
        return blob(cache, repo, file).stat().st_size == file.size
    except OSError:
        return False


def place(staging: Staging, listing: Listing, files: Sequence[HubFile], revision: str) -> Path:
    """Put a model into the cache; every file is verified in `staging` or in the cache already. Returns its snapshot.

    Raises:
        OSError: the cache cannot be written, or a file has vanished.
    """
    cache, root = staging.cache, repo_folder(staging.cache, listing.repo)
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for file in files:
        _place_blob(staging, listing.repo, file)
    if choice.satisfies_mlx_lm(listing, files):
        # Told of files that are not here, the hub's client would call the snapshot incomplete when it is offline.
        _write(root / "trees" / f"{listing.commit}.json", _tree(listing))
    snapshot = root / "snapshots" / listing.commit
    _link(snapshot, files, staging.folder / f"snapshot-{secrets.token_hex(4)}")
    _sync_folder(root / "snapshots")
    if revision != listing.commit:
        _write(root / "refs" / revision, listing.commit.encode())
    _tag(cache)
    return snapshot


def _place_blob(staging: Staging, repo: str, file: HubFile) -> None:
    verified, target = staging.verified(file), blob(staging.cache, repo, file)
    lock = staging.cache / ".locks" / target.parents[1].name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if is_here(staging.cache, repo, file):
            verified.unlink(missing_ok=True)
        else:
            verified.replace(target)


def _link(snapshot: Path, files: Sequence[HubFile], temporary: Path) -> None:
    """Make the snapshot's links: all in one step, or, where another tool has begun the snapshot, what is missing."""
    if snapshot.is_dir():
        # Its config last: without one it is no model yet.
        for file in sorted(files, key=lambda file: file.name == choice.CONFIG):
            link = temporary.with_name(f"{temporary.name}.link")
            link.symlink_to(_target(file))
            link.replace(snapshot / file.name)
        return
    temporary.mkdir()
    for file in files:
        (temporary / file.name).symlink_to(_target(file))
    snapshot.parent.mkdir(exist_ok=True)
    temporary.rename(snapshot)


def _target(file: HubFile) -> str:
    return os.path.join("..", "..", "blobs", file.etag)  # noqa: PTH118  the text of a link, not a path from here


def _tree(listing: Listing) -> bytes:
    """The list of a commit's files as `huggingface_hub/_tree_cache.py` keeps it, so that the hub need not be asked."""
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
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tag(cache: Path) -> None:
    """Have backups pass the cache over: https://bford.info/cachedir/."""
    tag = cache / "CACHEDIR.TAG"
    if not tag.exists():
        tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of downloaded models.\n")


def clear(staging: Staging) -> None:
    """Remove what an earlier attempt to place left in the staging folder."""
    for path in staging.folder.glob("snapshot-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
