"""Format tables, sizes and durations for people."""

import re
from collections.abc import Iterable, Sequence

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Align rows in columns."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def labeled_rows(label: str, values: Sequence[str], default: str = "none") -> list[tuple[str, str]]:
    """Build one row for each value; only the first row has the label."""
    return [(label if index == 0 else "", value) for index, value in enumerate(values or [default])]


def format_bytes(count: int) -> str:
    """Format a size in decimal units."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def format_count(count: int) -> str:
    """Format a parameter count the way model names do: `135M`, `3.2B`."""
    amount = float(count)
    for unit in ("", "K", "M", "B"):
        if amount < 999.5:
            return f"{amount:.0f}{unit}" if not unit or amount >= 99.95 else f"{amount:.1f}{unit}"
        amount /= 1000
    return f"{amount:.1f}T"


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `1h 2m`."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in _UNIT_SECONDS.items():
        amount, rest = divmod(rest, length)
        if amount or parts or unit == "s":
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])


def parse_duration(text: str) -> float | None:
    """Parse `90s`, `15m`, `1.5h` or `2d` into seconds; None if `text` is not a duration."""
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else None
