"""Durable files: atomic replacement, synced new files, and small versioned state files. All functions block."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from osaurusd.log import get_logger

log = get_logger(__name__)


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


class Versioned(Protocol):
    """The content of a state file: a msgspec struct with the version of its layout."""

    version: int


T = TypeVar("T", bound=Versioned)


class StateFile(Generic[T]):
    """A JSON file with state that survives restarts. It is always replaced as a whole.

    Args:
        path: the file, which need not exist.
        default: the state if there is no file. A file with another version counts as damaged.

    Attributes:
        fault: why the file was moved aside, or None.
    """

    def __init__(self, path: Path, default: T) -> None:
        self._path = path
        self._default = default
        self.fault: str | None = None

    def read(self) -> T:
        """Read the state. A damaged file is moved aside, logged, and reported in `fault`."""
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=type(self._default))
        except FileNotFoundError:
            return self._default
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._move_aside(str(error))
        if state.version != self._default.version:
            return self._move_aside(f"its version is {state.version}")
        return state

    def write(self, state: T) -> None:
        """Replace the file atomically.

        Raises:
            OSError: the file could not be written; the old state is unchanged.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path, msgspec.json.format(msgspec.json.encode(state)))

    def _move_aside(self, reason: str) -> T:
        target = self._path.with_suffix(".damaged.json")
        with contextlib.suppress(OSError):
            self._path.replace(target)
        self.fault = f"{self._path} was unusable and has been moved to {target.name}: {reason}"
        log.error("state file moved aside", file=str(self._path), reason=reason)
        return self._default
