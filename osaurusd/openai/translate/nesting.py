"""JSON of the client's own shape, on its way into frames and templates."""

from typing import Any

from osaurusd.errors import InvalidRequest

MAX_DEPTH = 100


def checked(value: dict[str, Any], path: str) -> dict[str, Any]:
    """`value` itself: every level of it costs stack wherever it is written or read again, so there may be only so many.

    Raises:
        InvalidRequest: it is nested too deeply; `path` is its JSON path.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [below for one in level for below in _members(one)]
        if not level:
            return value
    raise InvalidRequest(f"`{path}`: is nested too deeply; at most {MAX_DEPTH} levels", param=path)


def _members(value: object) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, dict | list)]
