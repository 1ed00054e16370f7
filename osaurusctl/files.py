"""Atomic file writes."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int, *, check: Callable[[Path], None] | None = None) -> None:
    """Replace a file atomically and durably; on any failure the old file stays as it is.

    Args:
        mode: permissions of the new file, regardless of the umask.
        check: called with the complete temporary file before it takes the place of `path`; may raise.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_directory(path.parent)


def read_file(path: Path) -> bytes | None:
    """Return the content of a file, or None if the file does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
