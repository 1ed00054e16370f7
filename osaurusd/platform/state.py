"""What is remembered over restarts: small JSON files, each replaced as a whole. Blocking."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from osaurusd.log import get_logger

log = get_logger(__name__)


class Versioned(Protocol):
    """What a file holds: a msgspec struct that says which layout it has."""

    version: int


T = TypeVar("T", bound=Versioned)


class StateFile(Generic[T]):
    """A JSON file of one kind.

    Args:
        path: where it lies, or will lie.
        blank: what holds if there is none; a file of another kind or version is damaged.
    """

    def __init__(self, path: Path, blank: T) -> None:
        self._path = path
        self._blank = blank
        self.fault: str | None = None

    def read(self) -> T:
        """What the file holds. One that cannot be used is moved aside and reported, also as `fault`."""
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=type(self._blank))
        except FileNotFoundError:
            return self._blank
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._set_aside(str(error))
        if state.version != self._blank.version:
            return self._set_aside(f"its version is {state.version}")
        return state

    def write(self, state: T) -> None:
        """Replace the file as a whole, so that a crash leaves the old one or the new one.

        Raises:
            OSError: it could not be written; the old one is still there.
        """
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{self._path.stem}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(state)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)  # noqa: PTH105  beside the descriptor calls it belongs to
        except OSError:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def _set_aside(self, reason: str) -> T:
        aside = self._path.with_suffix(".damaged.json")
        with contextlib.suppress(OSError):
            self._path.replace(aside)
        self.fault = f"{self._path} could not be used and was moved aside to {aside.name}: {reason}"
        log.error("a state file could not be used and was moved aside", file=str(self._path), reason=reason)
        return self._blank
