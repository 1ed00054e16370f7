"""Format tables, sizes and durations for people."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_COLUMN_GAP = "  "
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def format_table(rows: Iterable[Sequence[str]], *, width: int | None = None, drop: Sequence[str] = ()) -> str:
    """Align rows in columns.

    Args:
        rows: the first one has the titles of the columns, if `drop` is given.
        width: of the terminal; None if the output is not a terminal.
        drop: titles of the columns that a narrow terminal does without, the least important first.
    """
    lines = fit_columns([list(row) for row in rows], width, drop)
    widths = [max(map(text_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        _COLUMN_GAP.join(_pad(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fit_columns(rows: list[list[str]], width: int | None, drop: Sequence[str]) -> list[list[str]]:
    """Return the table without the first columns of `drop`, as many as necessary to fit into `width`."""
    for title in drop:
        if width is None or _table_width(rows) <= width:
            break
        if title in rows[0]:
            index = rows[0].index(title)
            rows = [[*row[:index], *row[index + 1 :]] for row in rows]
    return rows


def text_width(text: str) -> int:
    """Return the number of terminal cells that `text` takes: East Asian characters take two, accents none."""
    return sum(map(_character_width, text))


def _table_width(rows: list[list[str]]) -> int:
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + len(_COLUMN_GAP) * (len(widths) - 1)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pad(cell: str, width: int) -> str:
    return cell + " " * (width - text_width(cell))


def labeled_rows(label: str, values: Sequence[str], default: str = "none") -> list[tuple[str, str]]:
    """Build one row for each value; only the first row has the label."""
    return [(label if index == 0 else "", value) for index, value in enumerate(values or [default])]


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `1h 2m`."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in _UNIT_SECONDS.items():
        amount, rest = divmod(rest, length)
        if amount or parts or unit == "s":
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])


def parse_size(text: str) -> int | None:
    """Parse `8GB`, `1.5 TB` or `512MiB` into bytes; None if `text` is not a size."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** "_kmgt".index(match[2].lower() or "_"))


def parse_duration(text: str) -> float | None:
    """Parse `90s`, `15m`, `1.5h` or `2d` into seconds; None if `text` is not a duration."""
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else None
