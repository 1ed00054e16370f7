"""What has been received of one file, and the journal by which that is known after a crash.

Beside the data, which is written where it belongs in the file, lies a journal: a line for each MiB or so of a part. A
process that is killed loses what came after its last line, for the system still has what it wrote. When the whole
machine goes down that is not so: then only what was synced before counts, and the journal tells that apart by the boot
in which a line was written. A torn last line is passed over.
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
"""Large files are received in parts of this size, several at once."""

_NOTE_BYTES = 1024 * 1024
_VERSION = 1


@dataclass
class Part:
    """Bytes `begin` to `end` of a file, of which the first `done` have been received.

    `noted` of them are in the journal, and `safe` of them on the disk.
    """

    index: int
    begin: int
    end: int
    done: int = 0
    noted: int = 0
    safe: int = 0

    @property
    def left(self) -> int:
        return self.end - self.begin - self.done


class Partial:
    """One file on its way. Blocking, but small; all but `sync` belongs to one thread.

    Args:
        folder: where data and journal lie.
        etag: what they are called by: the digest of the whole file.
        size: of the whole file, in bytes.
    """

    def __init__(self, folder: Path, etag: str, size: int) -> None:
        self.data = folder / f"{etag}.part"
        self._journal_path = folder / f"{etag}.journal"
        self.size = size
        self.validator: str | None = None
        self.parts = _parts(size, PART_BYTES)
        self._unsynced = 0
        if self.data.exists():
            self._recall()
        self._fd = os.open(self.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._journal = self._new_journal()

    @property
    def received(self) -> int:
        return sum(part.done for part in self.parts)

    @property
    def unsynced(self) -> int:
        """Bytes that would be lost if the machine went down now."""
        return self._unsynced

    def write(self, part: Part, piece: bytes) -> None:
        """Put the next bytes of a part where they belong.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._fd, view, part.begin + part.done)
            part.done += count
            self._unsynced += count
            view = view[count:]
        if part.done - part.noted >= _NOTE_BYTES or not part.left:
            self._note(part)

    def expect(self, validator: str) -> None:
        """Remember what the server calls this version of the file."""
        self.validator = validator
        self._append({"validator": validator})

    def restart(self, *, whole: bool) -> None:
        """Forget everything; with `whole`, receive the file in one part from now on. Not while a `sync` runs."""
        self.validator = None
        self.parts = _parts(self.size, self.size if whole else PART_BYTES)
        os.ftruncate(self._fd, 0)
        self._unsynced = 0
        os.close(self._journal)
        self._journal = self._new_journal()

    def sync(self) -> None:
        """Have the disk hold what has been written so far. Takes as long as the disk does; any thread."""
        written = [part.done for part in self.parts]
        self._unsynced = 0
        os.fsync(self._fd)
        for part, done in zip(self.parts, written, strict=True):
            part.safe = done
        self._append({"safe": written})

    def close(self) -> None:
        """Let go of the files, which stay, with everything received in the journal. Not while a `sync` runs."""
        with contextlib.suppress(OSError):
            for part in self.parts:
                if part.done > part.noted:
                    self._note(part)
        for descriptor in (self._fd, self._journal):
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the files, once closed."""
        self.data.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """The data becomes the file `target`, which the disk has whole before it has that name. Closes."""
        os.fsync(self._fd)
        self.close()
        self.data.replace(target)
        self.remove()

    def _note(self, part: Part) -> None:
        part.noted = part.done
        self._append({"part": part.index, "done": part.done})

    def _append(self, line: object) -> None:
        os.write(self._journal, _line(line))

    def _recall(self) -> None:
        """Take over what an earlier process has received. A journal that makes no sense counts as none."""
        try:
            head, *lines = _lines(self._journal_path)
            if head["version"] == _VERSION and head["size"] == self.size:
                self.parts = _parts(self.size, head["part_bytes"])
                same_boot = head["boot"] is not None and head["boot"] == boot()
                for line in lines:
                    self._take(line, same_boot)
        except (OSError, ValueError, LookupError, TypeError):
            self.validator = None
            self.parts = _parts(self.size, PART_BYTES)

    def _take(self, line: dict[str, Any], same_boot: bool) -> None:
        if "validator" in line:
            self.validator = line["validator"]
        if "safe" in line:
            for part, safe in zip(self.parts, line["safe"], strict=True):
                part.safe = _within(part, safe)
                part.done = max(part.done, part.safe)
        if "part" in line and same_boot:
            part = self.parts[line["part"]]
            part.done = _within(part, line["done"])

    def _new_journal(self) -> int:
        """Replace the journal by a short one that says what is known now; the descriptor to add to it."""
        part_bytes = self.parts[0].end if self.parts else PART_BYTES
        temporary = self._journal_path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(_line({"version": _VERSION, "size": self.size, "part_bytes": part_bytes, "boot": boot()}))
            file.write(_line({"validator": self.validator}))
            file.write(_line({"safe": [part.safe for part in self.parts]}))
            for part in self.parts:
                part.noted = part.done
                if part.done > part.safe:
                    file.write(_line({"part": part.index, "done": part.done}))
        temporary.replace(self._journal_path)
        return os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _parts(size: int, part_bytes: int) -> list[Part]:
    begins = range(0, size, max(part_bytes, 1))
    return [Part(index, begin, min(begin + part_bytes, size)) for index, begin in enumerate(begins)]


def _within(part: Part, done: int) -> int:
    if not 0 <= done <= part.end - part.begin:
        raise ValueError(f"{done} bytes of a part that has {part.end - part.begin}")
    return done


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _lines(journal: Path) -> list[dict[str, Any]]:
    """All lines but what a crash left at the end of the last one."""
    whole, _, _ = journal.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


@cache
def boot() -> str | None:
    """What tells this run of the machine from others; None where the system does not say."""
    try:
        if sys.platform == "darwin":
            done = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, check=True)
            return done.stdout.decode().strip()
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, subprocess.SubprocessError):
        return None
