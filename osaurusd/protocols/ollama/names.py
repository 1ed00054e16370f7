"""Names, times and durations as Ollama's API writes them."""

import re
from datetime import datetime

from osaurusd.errors import InvalidRequest
from osaurusd.protocols.ollama.types import Duration
from osaurusd.wire.errors import as_json

_TAG = ":latest"

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")

_MAX_SECONDS = 10.0**9


def strip_tag(model: str | None) -> str | None:
    """Remove the tag that clients append to a name without one."""
    return None if model is None else model.removesuffix(_TAG)


def format_time(time: datetime) -> str:
    """Return a time in UTC as text."""
    return time.isoformat().replace("+00:00", "Z")


def parse_keep_alive(value: Duration | None) -> float | None:
    """Return a keep-alive in seconds: negative for no time limit, None for the configured one.

    Raises:
        InvalidRequest: the value is neither a number of seconds nor a duration such as `5m` or `1h30m`.
    """
    if value is None or value == "":
        return None
    seconds = _parse_duration(value) if isinstance(value, str) else float(value)
    if seconds is None:
        raise InvalidRequest(
            f"`keep_alive`: must be a number of seconds or a duration such as `5m`, not {as_json(str(value)[:100])}",
            param="keep_alive",
        )
    return min(seconds, _MAX_SECONDS)


def _parse_duration(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds
