"""Read the daemon's log: JSON lines in a file that the daemon rotates."""

import contextlib
import datetime
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from osaurusctl.formatting import parse_duration

LEVELS = ("debug", "info", "warning", "error", "critical")

POLL_SECONDS = 0.2
"""How often to look for new records."""

_STANDARD_FIELDS = frozenset({"timestamp", "level", "event", "logger", "exception"})


@dataclass(frozen=True)
class LogFilter:
    """Selects records of at least `level` that are not older than `since`."""

    level: str = "debug"
    since: datetime.datetime | None = None

    def matches(self, record: dict[str, Any]) -> bool:
        level = record.get("level")
        if level in LEVELS and LEVELS.index(str(level)) < LEVELS.index(self.level):
            return False
        return self.since is None or (timestamp := _timestamp(record)) is None or timestamp >= self.since


def parse_since(text: str, now: datetime.datetime) -> datetime.datetime:
    """Parse a duration before `now`, such as `10m`, or an ISO 8601 time; without a zone it is local.

    Raises:
        ValueError: `text` is neither.
    """
    seconds = parse_duration(text.strip())
    if seconds is not None:
        return now - datetime.timedelta(seconds=seconds)
    return datetime.datetime.fromisoformat(text.strip()).astimezone()


def read_last(file: Path, count: int, log_filter: LogFilter, stream: TextIO | None) -> list[dict[str, Any]]:
    """Return the last `count` matching records, including those of rotated files.

    Args:
        file: the log; rotated files are next to it.
        stream: `file` as `open_log` returned it; this reads it to its last complete line.
    """
    records: deque[dict[str, Any]] = deque(maxlen=count)
    for path in _rotated_files(file):
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as rotated:
            records.extend(record for record in map(_parse_record, rotated) if log_filter.matches(record))
    if stream is not None:
        records.extend(record for record in _complete_records(stream) if log_filter.matches(record))
    return list(records)


def follow(
    file: Path, log_filter: LogFilter, stream: TextIO | None, wait: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Yield matching records as the daemon writes them, starting at the position of `stream`. Never ends."""
    for record in poll(file, log_filter, stream):
        if record is None:
            wait(POLL_SECONDS)
        else:
            yield record


def poll(file: Path, log_filter: LogFilter, stream: TextIO | None) -> Iterator[dict[str, Any] | None]:
    """Like `follow`, but yield None whenever everything is read, instead of waiting."""
    while True:
        if stream is not None:
            yield from (record for record in _complete_records(stream) if log_filter.matches(record))
            if not _is_rotated(stream, file):
                yield None
                continue
            # The daemon may have written to the old file until it rotated it; read the rest.
            yield from (record for record in _complete_records(stream) if log_filter.matches(record))
            stream.close()
        stream = open_log(file)
        if stream is None:
            yield None


def format_record(record: dict[str, Any]) -> str:
    timestamp = _timestamp(record)
    local_time = timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S") if timestamp else "-"
    fields = [f"{name}={_format_value(value)}" for name, value in record.items() if name not in _STANDARD_FIELDS]
    line = " ".join([local_time, f"{record.get('level', '-')!s:<7}", str(record.get("event", "")), *fields])
    return "\n".join([line, *str(record.get("exception", "")).splitlines()])


def open_log(file: Path) -> TextIO | None:
    """Open the log; None if it does not exist yet."""
    try:
        return file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _rotated_files(file: Path) -> list[Path]:
    """Return the rotated files, oldest first."""
    rotated = [path for path in file.parent.glob(f"{file.name}.*") if path.suffix[1:].isdecimal()]
    return sorted(rotated, key=lambda path: -int(path.suffix[1:]))


def _complete_records(stream: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the records of complete lines; leave an incomplete last line for the next call."""
    while True:
        start = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(start)
            return
        yield _parse_record(line)


def _is_rotated(stream: TextIO, file: Path) -> bool:
    try:
        return not os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _parse_record(line: str) -> dict[str, Any]:
    """Parse a line. One that is not a JSON object becomes a record with the line as its event."""
    try:
        decoded = msgspec.json.decode(line)
    except msgspec.DecodeError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"event": line.rstrip("\n")}


def _timestamp(record: dict[str, Any]) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(record.get("timestamp")))
    except ValueError:
        return None


def _format_value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return msgspec.json.encode(text).decode() if isinstance(value, str) and (" " in text or not text) else text
