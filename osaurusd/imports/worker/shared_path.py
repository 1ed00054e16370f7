"""Paths of files that another process has opened and passed to this one.

An import reads its source through `pathlib`. A `SharedPath` has the same interface, but uses the descriptors: this
process may not be permitted to open the files itself; see `osaurusd.wire.open_files`.
"""

import errno
import fnmatch
import io
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any, ClassVar

from osaurusd.errors import ImportFailed
from osaurusd.wire import open_files
from osaurusd.wire.open_files import Offer


class SharedPath(PosixPath):
    """A path whose file is already open. `share` creates the subclass that knows the descriptors."""

    _descriptors: ClassVar[Mapping[str, int]] = {}
    _folder: ClassVar[str | None] = None

    def iterdir(self) -> Generator[Any, None, None]:
        prefix = f"{self}/"
        names = (path.removeprefix(prefix).split("/", 1)[0] for path in self._descriptors if path.startswith(prefix))
        return (type(self)(prefix + name) for name in dict.fromkeys(names))

    def glob(self, pattern: str, **_: Any) -> Iterator[Any]:  # type: ignore[override]  # only the argument in use
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def exists(self, **_: Any) -> bool:
        return str(self) in self._descriptors or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return str(self) in self._descriptors and stat.S_ISREG(self.stat().st_mode)

    def is_dir(self, **_: Any) -> bool:
        return str(self) == self._folder or any(path.startswith(f"{self}/") for path in self._descriptors)

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        return os.fstat(self._descriptor())

    def open(self, mode: str = "r", buffering: int = -1, **_: Any) -> Any:  # type: ignore[override]  # only binary
        if mode != "rb":
            raise io.UnsupportedOperation(f"a shared file can only be opened with mode rb, not {mode}")
        # A duplicate shares the position with its original, so it has to start from the beginning.
        descriptor = os.dup(self._descriptor())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.fdopen(descriptor, mode, buffering)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return bytes(file.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def _descriptor(self) -> int:
        try:
            return self._descriptors[str(self)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None


def share(source: Path, offer: Offer, descriptors: list[int]) -> Path:
    """Return a path with the name of `source`, a file or a folder, which reads the descriptors."""
    source = source.absolute()
    folder = source if offer.folder else source.parent
    names = [str(folder / name) for name in offer.names]

    class Shared(SharedPath):
        _descriptors: ClassVar[Mapping[str, int]] = dict(zip(names, descriptors, strict=True))
        _folder: ClassVar[str | None] = str(source) if offer.folder else None

    return Shared(source)


def receive_files(source: Path, socket_path: str) -> Path:
    """Receive the open files of `source`, and return the path that reads them.

    Raises:
        ImportFailed: the files were not passed.
    """
    try:
        return share(source, *open_files.receive(socket_path))
    except (OSError, open_files.InvalidOffer) as error:
        raise ImportFailed(f"{source.name}: osaurusctl did not pass the open files: {error}") from error
