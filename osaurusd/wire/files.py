"""Durable files: atomic replacement, and new files that are synced to disk. All functions block."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def replace_file(path: Path, content: bytes, mode: int = 0o600, *, check: Callable[[Path], None] | None = None) -> None:
    """Write a file atomically: after a crash, `path` holds either the old or the new content.

    Args:
        path: the file. Its folder must exist.
        content: the new content.
        mode: permissions of the new file, regardless of the umask.
        check: called with the complete temporary file before it takes the place of `path`; may raise.

    Raises:
        OSError: the file could not be written; the old content is unchanged.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if check is not None:
                check(temporary)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def read_file(path: Path) -> bytes | None:
    """Return the content of a file, or None if the file does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_new_text(path: Path, text: str) -> None:
    """Create a UTF-8 file and sync it to disk.

    Raises:
        FileExistsError: `path` exists.
    """
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_new_json(path: Path, document: dict[str, Any]) -> None:
    """Create a JSON file and sync it to disk. Raises like `write_new_text`."""
    write_new_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(path: Path) -> None:
    """Sync a folder to disk, so that files created or renamed in it survive a crash."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Sync the content of a file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether the disk, or the user's quota, has no space left."""
    return error.errno in _DISK_FULL


def describe(error: OSError) -> str:
    """Return the reason of a failure without the file."""
    return "the disk is full" if is_disk_full(error) else error.strerror or str(error)
