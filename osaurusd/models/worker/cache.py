"""Removes a model from the Hugging Face cache, by the strategy of huggingface_hub itself.

The cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A strategy that covers every
revision of a repo takes the repo's whole folder, `DeleteCacheStrategy.repos`; the library removes it with
`shutil.rmtree`, whose order is that of the directory. Blobs may thus go before the links to them, and a process that
dies meanwhile would leave a model that is whole but for its chat template. So the folder `snapshots` is renamed before
the strategy runs: in one step no revision of the model is there any longer, for us and for every other program.
"""

import secrets
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from osaurusd.models.worker.failure import StoreError
from osaurusd.models.worker.folder import REMOVING_PREFIX, size_of

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, DeleteCacheStrategy, HFCacheInfo

_UNSAFE = ("", ".", "..")


@dataclass(frozen=True)
class _Removal:
    """How one repo goes, and the bytes that come free with it."""

    strategy: "DeleteCacheStrategy"
    freed_bytes: int


def plan(cache: Path, repo: str) -> int:
    """The bytes that `delete` would free: what no other repo shares, partial downloads included.

    Raises:
        StoreError: the cache has no such model.
        OSError: the cache could not be read.
    """
    folder = _folder(cache, repo)
    return 0 if folder.is_symlink() else _removal(cache, folder).freed_bytes


def delete(cache: Path, repo: str) -> int:
    """Removes all revisions of a model and everything that the cache keeps for it; returns the bytes freed.

    If this process dies on the way, the model is either untouched or no revision of it is left, and another call
    finishes. Of a folder that is a link, only the link goes.

    Raises:
        StoreError: the cache has no such model, or something of it could not be removed.
        OSError: the cache could not be read or changed.
    """
    folder = _folder(cache, repo)
    if folder.is_symlink():
        folder.unlink()
        return 0
    removal = _removal(cache, folder)
    _retire(folder)
    # Before the repo itself: were they the last to go, a second call would find no repo and leave them.
    _remove_locks(cache, folder.name)
    _remove_blobs(folder)
    removal.strategy.execute()
    if folder.exists():
        # The library logs what it may not remove, and goes on.
        raise StoreError(f"{folder}: something in it could not be removed")
    return removal.freed_bytes


def _folder(cache: Path, repo: str) -> Path:
    """The folder of a model, named as `huggingface_hub.file_download.repo_folder_name` names it.

    Raises:
        StoreError: the cache has no such model.
    """
    # As scan_cache_dir resolves it, so that paths compare.
    folder = cache.expanduser().resolve() / "--".join(["models", *repo.split("/")])
    if any(part in _UNSAFE for part in repo.split("/")) or not (folder.is_symlink() or folder.is_dir()):
        raise StoreError(f"{repo}: it is not in {cache}")
    return folder


def _removal(cache: Path, folder: Path) -> _Removal:
    info = _scan(cache)
    repo = next((repo for repo in info.repos if repo.repo_path == folder), None)
    if repo is None:
        # The library reports a damaged repo as a warning and gives no strategy for it, such as one whose deletion was
        # interrupted. Its whole folder goes, as in a strategy for all revisions; of what it shares nothing is counted.
        strategy = replace(info.delete_revisions(), repos=frozenset({folder}))
        return _Removal(strategy, size_of(folder))
    strategy = _strategy(info, repo)
    counted = frozenset(file.blob_path for revision in repo.revisions for file in revision.files)
    return _Removal(strategy, int(strategy.expected_freed_size) + _loose_bytes(folder, counted))


def _scan(cache: Path) -> "HFCacheInfo":
    """What the library finds in the whole cache: it offers no scan of one repo.

    Raises:
        StoreError: there is no such cache.
        OSError: it could not be read.
    """
    # Imported late so that the death of the daemon is noticed while the library loads, and verifying does not load it.
    from huggingface_hub import CacheNotFound, scan_cache_dir  # noqa: PLC0415

    try:
        return scan_cache_dir(cache)
    except (CacheNotFound, ValueError) as error:
        raise StoreError(f"{cache}: it is no Hugging Face cache") from error


def _strategy(info: "HFCacheInfo", repo: "CachedRepoInfo") -> "DeleteCacheStrategy":
    """The library's strategy for all revisions of a repo."""
    # delete_revisions takes commits and the first repo that has one. A duplicated or renamed repo has the same commits.
    alone = replace(info, repos=frozenset({repo}))
    if not repo.revisions:
        return replace(alone.delete_revisions(), repos=frozenset({repo.repo_path}))
    return alone.delete_revisions(*(revision.commit_hash for revision in repo.revisions))


def _loose_bytes(folder: Path, counted: frozenset[Path]) -> int:
    """Bytes that the library does not count: partial downloads, and blobs that no revision uses.

    A blob that is itself a link lies in the store that repos share, and is the library's to count.
    """
    total = 0
    for path in _entries(folder / "blobs"):
        status = path.lstat()
        if path not in counted and stat.S_ISREG(status.st_mode):
            total += status.st_size
    return total


def _retire(folder: Path) -> None:
    """Makes all revisions disappear in one step. The renamed folder goes with the repo's."""
    snapshots = folder / "snapshots"
    if snapshots.is_symlink() or snapshots.exists():
        snapshots.rename(folder / f"{REMOVING_PREFIX}{secrets.token_hex(8)}")


def _remove_locks(cache: Path, name: str) -> None:
    """Removes the repo's subfolder of `.locks`, which the library leaves behind."""
    locks = cache.expanduser().resolve() / ".locks" / name
    if locks.is_dir() and not locks.is_symlink():
        shutil.rmtree(locks)


def _remove_blobs(folder: Path) -> None:
    """Removes what takes the room while `refs` still stands, by which an interrupted deletion is seen in the catalog.

    Links into the store that repos share stay for the strategy, which looks through them for what nobody needs.
    """
    for path in _entries(folder / "blobs"):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def _entries(blobs: Path) -> list[Path]:
    """What lies in a repo's `blobs`; nothing if that is a link, for what it leads to is outside the repo."""
    return sorted(blobs.iterdir()) if blobs.is_dir() and not blobs.is_symlink() else []
