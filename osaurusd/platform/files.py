"""Durable files: atomic replacement and synced new files. All functions block."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file atomically: after a crash, `path` holds either the old or the new content.

    Raises:
        OSError: the file could not be written; the old content is unchanged.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


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
