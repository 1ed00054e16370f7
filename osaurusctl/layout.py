"""Numbers and rows as people read them."""

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the header where there is one."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def labelled(label: str, values: Sequence[str], nothing: str = "none") -> list[tuple[str, str]]:
    """A row a value, the first with the label."""
    return [(label if index == 0 else "", value) for index, value in enumerate(values or [nothing])]


def size(count: int) -> str:
    """Bytes in decimal units, as disks are sold."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def quantity(count: int) -> str:
    """A number of parameters, as models are named after it."""
    amount = float(count)
    for unit in ("", "K", "M", "B"):
        if amount < 999.5:
            return f"{amount:.0f}{unit}" if not unit or amount >= 99.95 else f"{amount:.1f}{unit}"
        amount /= 1000
    return f"{amount:.1f}T"


def age(seconds: float) -> str:
    """A span of time in its two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, length)
        if amount or parts or unit == "s":
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])
