"""A partially received file and its journal, from which a later process resumes.

The data is written to its final position in the file. The journal beside it has a line for each received MiB of a part.
If the process is killed, only the data after its last line is lost, because the system still writes out its buffers.
After a power failure, only synced data counts: each journal names the boot during which it was written. An
incomplete last line is ignored.
"""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PART_BYTES = 32 * 1024 * 1024
"""The size of the parts in which large files are received concurrently."""

_JOURNAL_INTERVAL_BYTES = 1024 * 1024
_VERSION = 1


@dataclass
class Part:
    """Bytes `begin` to `end` of a file.

    Attributes:
        done: the number of received bytes.
        recorded: how many of them are in the journal.
        synced: how many of them are known to be on the disk.
    """

    index: int
    begin: int
    end: int
    done: int = 0
    recorded: int = 0
    synced: int = 0

    @property
    def missing(self) -> int:
        return self.end - self.begin - self.done


class Partial:
    """A partially received file. Methods block for a short time; all but `sync` must be called from one thread.

    Args:
        folder: the folder of data and journal.
        etag: the digest of the whole file, which names both files.
        size: the size of the whole file in bytes.
    """

    def __init__(self, folder: Path, etag: str, size: int) -> None:
        self.data = folder / f"{etag}.part"
        self._journal_path = folder / f"{etag}.journal"
        self.size = size
        self.validator: str | None = None
        self.parts = _split(size, PART_BYTES)
        self._unsynced = 0
        if self.data.exists():
            self._load_journal()
        self._fd = os.open(self.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._journal = self._create_journal()

    @property
    def received(self) -> int:
        return sum(part.done for part in self.parts)

    @property
    def unsynced(self) -> int:
        """Bytes that a power failure would lose."""
        return self._unsynced

    def write(self, part: Part, chunk: bytes) -> None:
        """Write the next bytes of a part.

        Raises:
            OSError: the disk is full or not writable.
        """
        view = memoryview(chunk)
        while view:
            count = os.pwrite(self._fd, view, part.begin + part.done)
            part.done += count
            self._unsynced += count
            view = view[count:]
        if part.done - part.recorded >= _JOURNAL_INTERVAL_BYTES or not part.missing:
            self._record(part)

    def set_validator(self, validator: str) -> None:
        """Record the server's identifier for this version of the file."""
        self.validator = validator
        self._append({"validator": validator})

    def restart(self, *, whole: bool) -> None:
        """Discard all data; with `whole`, use a single part from now on. Not while `sync` runs."""
        self.validator = None
        self.parts = _split(self.size, self.size if whole else PART_BYTES)
        os.ftruncate(self._fd, 0)
        self._unsynced = 0
        os.close(self._journal)
        self._journal = self._create_journal()

    def sync(self) -> None:
        """Flush all data to the disk, which may take long. May be called from any thread."""
        done = [part.done for part in self.parts]
        self._unsynced = 0
        os.fsync(self._fd)
        for part, count in zip(self.parts, done, strict=True):
            part.synced = count
        self._append({"synced": done})

    def close(self) -> None:
        """Record everything that was received, and close the files. Not while `sync` runs."""
        with contextlib.suppress(OSError):
            for part in self.parts:
                if part.done > part.recorded:
                    self._record(part)
        for descriptor in (self._fd, self._journal):
            os.close(descriptor)

    def remove(self) -> None:
        """Delete the closed files."""
        self.data.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Flush the data to the disk, close the files, even after an error, and move the data to `target`."""
        try:
            os.fsync(self._fd)
        finally:
            self.close()
        self.data.replace(target)
        self.remove()

    def _record(self, part: Part) -> None:
        part.recorded = part.done
        self._append({"part": part.index, "done": part.done})

    def _append(self, entry: object) -> None:
        os.write(self._journal, _encode_line(entry))

    def _load_journal(self) -> None:
        """Restore the state of an earlier process; an invalid journal is ignored."""
        try:
            header, *entries = _read_lines(self._journal_path)
            if header["version"] == _VERSION and header["size"] == self.size:
                self.parts = _split(self.size, header["part_bytes"])
                same_boot = header["boot"] is not None and header["boot"] == boot_id()
                for entry in entries:
                    self._apply(entry, same_boot=same_boot)
        except (OSError, ValueError, LookupError, TypeError):
            self.validator = None
            self.parts = _split(self.size, PART_BYTES)

    def _apply(self, entry: dict[str, Any], *, same_boot: bool) -> None:
        if "validator" in entry:
            self.validator = entry["validator"]
        if "synced" in entry:
            for part, synced in zip(self.parts, entry["synced"], strict=True):
                part.synced = _checked(part, synced)
                part.done = max(part.done, part.synced)
        if "part" in entry and same_boot:
            part = self.parts[entry["part"]]
            part.done = _checked(part, entry["done"])

    def _create_journal(self) -> int:
        """Replace the journal by a compact one with the current state; returns its descriptor."""
        part_bytes = self.parts[0].end if self.parts else PART_BYTES
        temporary = self._journal_path.with_suffix(".new")
        with temporary.open("wb") as file:
            header = {"version": _VERSION, "size": self.size, "part_bytes": part_bytes, "boot": boot_id()}
            file.write(_encode_line(header))
            file.write(_encode_line({"validator": self.validator}))
            file.write(_encode_line({"synced": [part.synced for part in self.parts]}))
            for part in self.parts:
                part.recorded = part.done
                if part.done > part.synced:
                    file.write(_encode_line({"part": part.index, "done": part.done}))
        temporary.replace(self._journal_path)
        return os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _split(size: int, part_bytes: int) -> list[Part]:
    begins = range(0, size, max(part_bytes, 1))
    return [Part(index, begin, min(begin + part_bytes, size)) for index, begin in enumerate(begins)]


def _checked(part: Part, done: int) -> int:
    if not 0 <= done <= part.end - part.begin:
        raise ValueError(f"{done} bytes exceed the part's size of {part.end - part.begin}")
    return done


def _encode_line(entry: object) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a journal."""
    complete, _, _ = journal.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in complete.splitlines()]


@cache
def boot_id() -> str | None:
    """Return an identifier of the current boot; None if the system does not provide one."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, check=True).stdout.decode().strip()
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, subprocess.SubprocessError):
        return None
