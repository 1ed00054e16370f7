"""Removing models: folders of imported ones, and repositories in the Hugging Face cache.

For the cache's layout see https://huggingface.co/docs/huggingface_hub/guides/manage-cache. huggingface_hub's own
deletion strategy removes a repository with `shutil.rmtree` in directory order. If the process died halfway, the
remaining model could lack, for example, only its chat template. The folder `snapshots` is therefore renamed first:
after that, no program sees a revision of the model.
"""

import secrets
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from osaurusd.models.roots import REMOVING_PREFIX, repo_folder
from osaurusd.models.worker.files import StoreError, walk_files

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, DeleteCacheStrategy, HFCacheInfo

_UNSAFE = ("", ".", "..")


@dataclass(frozen=True)
class _Plan:
    strategy: "DeleteCacheStrategy"
    freed_bytes: int


def remove_folder(path: Path) -> int:
    """Remove the folder of an imported model; returns the bytes of its files.

    The folder is renamed first: if the process dies, the model either is intact or has disappeared from the catalog.
    If the folder is a link, only the link is removed.

    Raises:
        StoreError: the folder does not exist.
        OSError: the folder cannot be removed.
    """
    path = path.absolute()
    if path.is_symlink():
        path.unlink()
        return 0
    if not path.is_dir():
        raise StoreError(f"{path} {'is not a folder' if path.exists() else 'does not exist'}")
    renamed = path.with_name(f"{REMOVING_PREFIX}{secrets.token_hex(8)}")
    path.rename(renamed)
    freed = size_of(renamed)
    shutil.rmtree(renamed)
    return freed


def size_of(folder: Path) -> int:
    """Return the bytes of all regular files in a folder tree; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    statuses = (path.lstat() for path in walk_files(folder))
    return sum(status.st_size for status in statuses if stat.S_ISREG(status.st_mode))


def plan_repo_removal(cache: Path, repo: str) -> int:
    """Return the bytes that `remove_repo` would free: partial downloads included, files shared with others excluded.

    Raises:
        StoreError: the cache does not contain the model.
        OSError: the cache cannot be read.
    """
    folder = _find_repo(cache, repo)
    return 0 if folder.is_symlink() else _plan(cache, folder).freed_bytes


def remove_repo(cache: Path, repo: str) -> int:
    """Remove all revisions of a model and everything else the cache keeps for it; returns the freed bytes.

    If the process dies, the model either is intact or has no revision left, and another call finishes the removal.
    If the repository's folder is a link, only the link is removed.

    Raises:
        StoreError: the cache does not contain the model, or a file could not be removed.
        OSError: the cache cannot be read or changed.
    """
    folder = _find_repo(cache, repo)
    if folder.is_symlink():
        folder.unlink()
        return 0
    plan = _plan(cache, folder)
    _hide_snapshots(folder)
    # The repository comes last: without it, a second call would not find the locks.
    _remove_locks(cache, folder.name)
    _remove_blobs(folder)
    plan.strategy.execute()
    if folder.exists():
        # huggingface_hub logs failures instead of raising them.
        raise StoreError(f"{folder} could not be removed completely; check its permissions")
    return plan.freed_bytes


def _find_repo(cache: Path, repo: str) -> Path:
    # scan_cache_dir returns resolved paths too.
    folder = repo_folder(cache.expanduser().resolve(), repo)
    if any(part in _UNSAFE for part in repo.split("/")) or not (folder.is_symlink() or folder.is_dir()):
        raise StoreError(f'model "{repo}" is not in {cache}')
    return folder


def _plan(cache: Path, folder: Path) -> _Plan:
    info = _scan(cache)
    repo = next((repo for repo in info.repos if repo.repo_path == folder), None)
    if repo is None:
        # For a damaged repository, for example after an interrupted removal, the library only reports a warning.
        # Remove the whole folder; shared files are not counted.
        strategy = replace(info.delete_revisions(), repos=frozenset({folder}))
        return _Plan(strategy, size_of(folder))
    strategy = _deletion_strategy(info, repo)
    counted = frozenset(file.blob_path for revision in repo.revisions for file in revision.files)
    return _Plan(strategy, int(strategy.expected_freed_size) + _uncounted_bytes(folder, counted))


def _scan(cache: Path) -> "HFCacheInfo":
    """Scan the whole cache; the library cannot scan a single repository."""
    # Imported here so that `verify` does not load the library, and the process notices the daemon's exit meanwhile.
    from huggingface_hub import CacheNotFound, scan_cache_dir  # noqa: PLC0415

    try:
        return scan_cache_dir(cache)
    except (CacheNotFound, ValueError) as error:
        raise StoreError(f"{cache} is not a Hugging Face cache") from error


def _deletion_strategy(info: "HFCacheInfo", repo: "CachedRepoInfo") -> "DeleteCacheStrategy":
    """Return the library's strategy for deleting all revisions of a repository."""
    # delete_revisions takes the first repository with a given commit, and duplicated or renamed ones share commits.
    single = replace(info, repos=frozenset({repo}))
    if not repo.revisions:
        return replace(single.delete_revisions(), repos=frozenset({repo.repo_path}))
    return single.delete_revisions(*(revision.commit_hash for revision in repo.revisions))


def _uncounted_bytes(folder: Path, counted: frozenset[Path]) -> int:
    """Return the bytes that the library does not count: partial downloads, and blobs without a revision."""
    total = 0
    for path in _list_blobs(folder):
        # A blob that is a link refers to the store that repositories share, which the library counts.
        status = path.lstat()
        if path not in counted and stat.S_ISREG(status.st_mode):
            total += status.st_size
    return total


def _hide_snapshots(folder: Path) -> None:
    """Make all revisions disappear in one step. The renamed folder is removed with the repository."""
    snapshots = folder / "snapshots"
    if snapshots.is_symlink() or snapshots.exists():
        snapshots.rename(folder / f"{REMOVING_PREFIX}{secrets.token_hex(8)}")


def _remove_locks(cache: Path, name: str) -> None:
    """Remove the repository's folder in `.locks`, which the library leaves behind."""
    locks = cache.expanduser().resolve() / ".locks" / name
    if locks.is_dir() and not locks.is_symlink():
        shutil.rmtree(locks)


def _remove_blobs(folder: Path) -> None:
    """Remove the large files while `refs` still exists: with it, the catalog lists an interrupted removal.

    Links into the store that repositories share remain for the strategy, which removes targets without other links.
    """
    for path in _list_blobs(folder):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def _list_blobs(folder: Path) -> list[Path]:
    """Return the files in `blobs`; none if it is a link, whose target is outside the repository."""
    blobs = folder / "blobs"
    return sorted(blobs.iterdir()) if blobs.is_dir() and not blobs.is_symlink() else []
