"""Removing, verifying and hashing models, and finding leftovers.

A child process removes, verifies and hashes: it imports huggingface_hub, and hashing keeps a core busy.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from osaurusd.errors import InternalError, InvalidRequest
from osaurusd.models import messages
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.models.roots import COPYING_PREFIX, IMPORTING_PREFIX, REMOVING_PREFIX, pulls_folder
from osaurusd.rpc import job
from osaurusd.wire.admin import Leftover

COMMAND = job.module_command("osaurusd.models.worker")

# The unit of `st_blocks`, regardless of the file system's block size.
_BLOCK_BYTES = 512

_LEFTOVERS = {
    IMPORTING_PREFIX: "unfinished import",
    REMOVING_PREFIX: "unfinished removal",
    COPYING_PREFIX: "unfinished copy from another host",
}


async def remove_model(catalog: Catalog, record: ModelRecord, *, dry_run: bool) -> int:
    """Remove a model from disk; returns the freed bytes. With `dry_run` only compute them.

    Raises:
        InvalidRequest: the model is in an extra root, which the daemon does not change.
        InternalError: the removal failed; the message states the reason.
    """
    if record.source == "extra":
        raise InvalidRequest(
            f'model "{record.name}" is in {record.path}, which belongs to another program; remove it there',
            location=("model",),
        )
    if record.source == "imported":
        if dry_run:
            return record.size_bytes
        arguments = ["remove-folder", "--path", str(record.path)]
    else:
        arguments = ["plan" if dry_run else "remove", "--cache", str(catalog.hub), "--repo", record.repo]
    async with contextlib.aclosing(_run(arguments)) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Removal):
                return frame.freed_bytes
    raise InternalError("the maintenance process exited without a result")


async def verify_model(record: ModelRecord) -> AsyncGenerator[messages.Hashing | messages.Verification]:
    """Hash a model's files; yields progress, then the comparison with the recorded digests.

    Raises:
        InternalError: a file cannot be read.
    """
    async with contextlib.aclosing(_run(["verify", "--snapshot", str(record.path)])) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Hashing | messages.Verification):
                yield frame
            if isinstance(frame, messages.Verification):
                return


async def hash_files(folder: Path, names: Sequence[str], progress: Callable[[int, int], None]) -> dict[str, str]:
    """Return the SHA-256 of files in a model's folder, by name.

    Args:
        folder: the model's folder.
        names: the files, relative to it.
        progress: called with the hashed bytes and those of all files.

    Raises:
        InternalError: a file cannot be read.
    """
    async with contextlib.aclosing(_run(["hash", "--folder", str(folder), "--", *names])) as frames:
        async for frame in frames:
            if isinstance(frame, messages.Hashing):
                progress(frame.done, frame.total)
            elif isinstance(frame, messages.Digests):
                return frame.digests
    raise InternalError("the maintenance process exited without a result")


async def find_leftovers(models_dir: Path, hub: Path) -> list[Leftover]:
    """Find the files of unfinished imports, removals, copies and downloads."""
    return await asyncio.to_thread(_find_leftovers, models_dir, hub)


def _find_leftovers(models_dir: Path, hub: Path) -> list[Leftover]:
    candidates = [(path, what) for prefix, what in _LEFTOVERS.items() for path in sorted(models_dir.glob(f"{prefix}*"))]
    # Links are not followed: their targets do not belong to the daemon.
    partials = pulls_folder(hub)
    if os.path.realpath(partials) == str(pulls_folder(hub.resolve())):
        candidates += [(path, "partial download") for path in sorted(partials.glob("*"))]
    return [
        Leftover(path=str(path), bytes=_disk_usage(path), what=what)
        for path, what in candidates
        if not path.is_symlink()
    ]


def _disk_usage(folder: Path) -> int:
    """Return the bytes that the files in a folder take on the disk; holes in partial downloads take none."""
    total = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            total += min(status.st_size, status.st_blocks * _BLOCK_BYTES)
    return total


async def _run(arguments: list[str]) -> AsyncGenerator[messages.Message]:
    try:
        async with contextlib.aclosing(job.run(COMMAND, arguments, messages.DECODER)) as frames:
            async for frame in frames:
                if isinstance(frame, messages.Failure):
                    raise InternalError(frame.message)
                yield frame
    except job.JobDied as error:
        raise InternalError(f"the maintenance process failed: {error}") from error
