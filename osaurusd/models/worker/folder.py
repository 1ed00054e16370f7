"""Removes the folder of an imported model."""

import os
import secrets
import shutil
import stat
from pathlib import Path

from osaurusd.models.worker.failure import StoreError

REMOVING_PREFIX = ".removing-"
"""What a folder is called while it is being removed. The catalog passes such names over, and `prune` lists them."""


def delete(path: Path) -> int:
    """Removes a model's folder; returns the bytes of its files.

    The folder is renamed first, so that the model is there whole or not at all, whenever this process dies. Of a link
    only the link goes, and no bytes with it: what it points to belongs to someone else.

    Raises:
        StoreError: there is no such folder.
        OSError: it could not be removed.
    """
    path = path.absolute()
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}")
    if path.is_symlink():
        path.unlink()
        return 0
    if not path.is_dir():
        raise StoreError(f"{path}: {'it is not a folder' if path.exists() else 'there is no such folder'}")
    aside = path.with_name(f"{REMOVING_PREFIX}{secrets.token_hex(8)}")
    path.rename(aside)
    freed = size_of(aside)
    shutil.rmtree(aside)
    return freed


def size_of(folder: Path) -> int:
    """Bytes of the regular files below a folder, links not followed.

    Raises:
        OSError: a folder below it cannot be read.
    """
    total = 0
    for parent, _, names in os.walk(folder, onerror=_refuse):
        for name in names:
            status = (Path(parent) / name).lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total


def _refuse(error: OSError) -> None:
    raise error
