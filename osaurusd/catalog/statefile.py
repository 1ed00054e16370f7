"""Small JSON files that outlive the daemon: replaced as a whole, and moved aside when they cannot be read. Blocking."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from osaurusd.log import get_logger

log = get_logger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


def load(file: Path, kind: type[T], version: int, what: str) -> T:
    """The file's content, or a blank `kind` if there is no such file or it cannot be used; then it is moved aside.

    Args:
        file: where it lies.
        kind: has a field `version`.
        version: the only one that can be used.
        what: it holds, for the log.
    """
    try:
        state: Any = msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        _set_aside(file, what, str(error))
        return kind()
    if state.version != version:
        _set_aside(file, what, f"its version is {state.version}")
        return kind()
    loaded: T = state
    return loaded


def save(file: Path, content: bytes) -> None:
    """Replace the file, so that a crash leaves the old one or the new one.

    Raises:
        OSError: it could not be written.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.format(content))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)  # noqa: PTH105  beside the descriptor calls it belongs to
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _set_aside(file: Path, what: str, reason: str) -> None:
    aside = file.with_suffix(".damaged.json")
    with contextlib.suppress(OSError):
        file.replace(aside)
    log.error(f"the {what} file could not be used and was moved aside", file=str(file), aside=str(aside), reason=reason)
