"""Copies of models that another host distributes: what a copy's record says about it. Blocking."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from osaurusd.models.metadata import IMPORT_RECORD


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """Where a copy comes from.

    Attributes:
        host: the paired host.
        model: its name there.
        digest: identifies all files of the model, of which a copy may have only some.
    """

    host: str
    model: str
    digest: str

    @property
    def description(self) -> str:
        """Why a copy without all weights cannot be loaded on its own."""
        return f'some layers of "{self.model}", for groups of host "{self.host}"; it cannot be loaded on its own'


class _Record(msgspec.Struct):
    """The part of an import record that copies have."""

    copy: Copy | None = None


def read_copy(folder: Path) -> Copy | None:
    """Return where a model was copied from; None if it was not copied from another host."""
    try:
        return msgspec.json.decode((folder / IMPORT_RECORD).read_bytes(), type=_Record).copy
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def encode_record(copy: Copy, digests: Mapping[str, str]) -> bytes:
    """Encode the import record of a copy, with the SHA-256 of its files by name."""
    return msgspec.json.format(msgspec.json.encode({"format": "copy", "copy": copy, "files": digests}))
