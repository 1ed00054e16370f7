"""Removing and verifying models, by a child process that knows huggingface_hub's cache."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from osaurusd.errors import InternalError, InvalidRequest
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import STAGING_PREFIXES, pulls_folder
from osaurusd.rpc import child, messages
from osaurusd.wire.admin import Leftover

STORE_COMMAND = (*child.PYTHON, "osaurusd.models.worker")

# What `st_blocks` counts, whatever the file system's own blocks are.
_BLOCK_BYTES = 512

_WHAT = {STAGING_PREFIXES[0]: "an unfinished import", STAGING_PREFIXES[1]: "an unfinished removal"}


async def deletion(catalog: Catalog, record: ModelRecord, *, dry_run: bool) -> int:
    """Remove a model from disk, or with `dry_run` find out what that would free; returns the bytes.

    Raises:
        InvalidRequest: it lies in a folder that is not ours to change.
        InternalError: it could not be removed; the message says why.
    """
    if record.source == "extra":
        raise InvalidRequest(
            f"`{record.name}` lies in {record.path}, which belongs to another program; remove it there"
        )
    if record.source == "imported":
        if dry_run:
            return record.size_bytes
        arguments = ["delete-folder", "--path", str(record.path)]
    else:
        arguments = ["plan" if dry_run else "delete", "--cache", str(catalog.hub), "--repo", record.repo]
    freed = 0
    async with contextlib.aclosing(_run(arguments)) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Deletion):
                freed = frame.freed_bytes
                break
    return freed


async def verification(record: ModelRecord) -> AsyncGenerator[messages.Hashing | messages.Hashed]:
    """Hash a model's files; yields progress, then how each compares with what the store recorded.

    Raises:
        InternalError: a file could not be read.
    """
    async with contextlib.aclosing(_run(["verify", "--snapshot", str(record.path)])) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Hashing | messages.Hashed):
                yield frame
            if isinstance(frame, messages.Hashed):
                return


async def leftovers(models_dir: Path, hub: Path) -> list[Leftover]:
    """What imports, removals and downloads that did not finish have left behind."""
    return await asyncio.to_thread(_leftovers, models_dir, hub)


def _leftovers(models_dir: Path, hub: Path) -> list[Leftover]:
    found = [(path, what) for prefix, what in _WHAT.items() for path in sorted(models_dir.glob(f"{prefix}*"))]
    # A link is not followed: what it leads to is not ours to list or to remove.
    partials = pulls_folder(hub)
    if os.path.realpath(partials) == str(pulls_folder(hub.resolve())):
        found += [(path, "a partial download") for path in sorted(partials.glob("*"))]
    found = [(path, what) for path, what in found if not path.is_symlink()]
    return [Leftover(path=str(path), bytes=_size(path), what=what) for path, what in found]


def _size(folder: Path) -> int:
    """Bytes on the disk; a file that is received in parts has holes, which take none."""
    total = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            total += min(status.st_size, status.st_blocks * _BLOCK_BYTES)
    return total


async def _run(arguments: list[str]) -> AsyncGenerator[messages.FromStore]:
    try:
        async with contextlib.aclosing(child.frames(STORE_COMMAND, arguments, messages.FROM_STORE)) as frames:
            async for frame in frames:
                if isinstance(frame, messages.StoreFailure):
                    raise InternalError(frame.message)
                yield frame
    except child.ChildDied as error:
        raise InternalError(f"the process that looks after the model store died ({error})") from error
