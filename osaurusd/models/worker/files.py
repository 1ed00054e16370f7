"""What removal and verification share: the error of an operation, and the walk through the files of a model."""

import os
from collections.abc import Iterator
from pathlib import Path


class StoreError(Exception):
    """The operation cannot be carried out; the message states the reason and names the file or the model."""


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield everything in a folder tree except folders and links to folders.

    Raises:
        OSError: a folder cannot be read.
    """
    for parent, _, names in os.walk(folder, onerror=_raise):
        yield from (Path(parent) / name for name in names)


def _raise(error: OSError) -> None:
    raise error
