"""Small files with state that survives restarts. All functions block."""

import contextlib
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from osaurusd.log import get_logger
from osaurusd.wire.files import replace_file

log = get_logger(__name__)


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
