"""Sizes and counts as people read them."""

from collections.abc import Sequence


def format_bytes(count: int) -> str:
    """Format a size in decimal units."""
    return _format_scaled(count, (" B", " kB", " MB", " GB", " TB"))


def format_count(count: int) -> str:
    """Format a parameter count the way model names do: `135M`, `3.2B`."""
    return _format_scaled(count, ("", "K", "M", "B", "T"))


def _format_scaled(count: int, units: Sequence[str]) -> str:
    amount = float(count)
    for unit in units[:-1]:
        if amount < 999.5:
            return f"{amount:.0f}{unit}" if unit == units[0] or amount >= 99.95 else f"{amount:.1f}{unit}"
        amount /= 1000
    return f"{amount:.1f}{units[-1]}"
