"""Reading the daemon's log: JSON lines in a file that is rotated under the reader."""

import contextlib
import datetime
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

LEVELS = ("debug", "info", "warning", "error", "critical")

_POLL_SECONDS = 0.2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_HEAD = frozenset({"timestamp", "level", "event", "logger", "exception"})


@dataclass(frozen=True)
class Wanted:
    """Which lines to show: of this level or above, and not older than `since`."""

    level: str = "debug"
    since: datetime.datetime | None = None

    def takes(self, record: dict[str, Any]) -> bool:
        level = record.get("level")
        if level in LEVELS and LEVELS.index(str(level)) < LEVELS.index(self.level):
            return False
        return self.since is None or (when := _time(record)) is None or when >= self.since


def parse_since(text: str, now: datetime.datetime) -> datetime.datetime:
    """`10m`, `2h`, `1d` ago, or a time as ISO 8601 writes it; one without a zone is this machine's.

    Raises:
        ValueError: it is neither.
    """
    if span := _SPAN.fullmatch(text.strip()):
        return now - datetime.timedelta(seconds=float(span[1]) * _UNITS[span[2]])
    return datetime.datetime.fromisoformat(text.strip()).astimezone()


def last(file: Path, count: int, wanted: Wanted, stream: TextIO | None) -> list[dict[str, Any]]:
    """The last `count` wanted records, older files included; a line that is no JSON is a record of its text.

    Args:
        file: the log; what it was rotated to lies beside it.
        stream: `file` as `open_log` opened it; read to its last complete line.
    """
    kept: deque[dict[str, Any]] = deque(maxlen=count)
    for path in _rotated(file):
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as old:
            kept.extend(record for record in map(_record, old) if wanted.takes(record))
    if stream is not None:
        kept.extend(record for record in _complete_lines(stream) if wanted.takes(record))
    return list(kept)


def follow(
    file: Path, wanted: Wanted, stream: TextIO | None, wait: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Wanted records from where `stream` is, as they are written, through every rotation. Never ends."""
    while True:
        if stream is not None:
            yield from (record for record in _complete_lines(stream) if wanted.takes(record))
            if not _is_rotated(stream, file):
                wait(_POLL_SECONDS)
                continue
            # Nothing more comes to the old file once there is a new one.
            yield from (record for record in _complete_lines(stream) if wanted.takes(record))
            stream.close()
        stream = open_log(file)
        if stream is None:
            wait(_POLL_SECONDS)


def shown(record: dict[str, Any]) -> str:
    """A record as people read it."""
    when = _time(record)
    stamp = when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else "-"
    fields = [f"{name}={_value(value)}" for name, value in record.items() if name not in _HEAD]
    line = " ".join([stamp, f"{record.get('level', '-')!s:<7}", str(record.get("event", "")), *fields])
    return "\n".join([line, *str(record.get("exception", "")).splitlines()])


def open_log(file: Path) -> TextIO | None:
    """The log, or None if there is none yet."""
    try:
        return file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _rotated(file: Path) -> list[Path]:
    """Oldest first."""
    rotated = [path for path in file.parent.glob(f"{file.name}.*") if path.suffix[1:].isdecimal()]
    return sorted(rotated, key=lambda path: -int(path.suffix[1:]))


def _complete_lines(stream: TextIO) -> Iterator[dict[str, Any]]:
    """Lines that have their end; half of one is left for the next time."""
    while True:
        start = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(start)
            return
        yield _record(line)


def _is_rotated(stream: TextIO, file: Path) -> bool:
    try:
        return not os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _record(line: str) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(line)
    except msgspec.DecodeError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"event": line.rstrip("\n")}


def _time(record: dict[str, Any]) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(record.get("timestamp")))
    except ValueError:
        return None


def _value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return msgspec.json.encode(text).decode() if isinstance(value, str) and (" " in text or not text) else text
