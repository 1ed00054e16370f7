"""Errors about fields of a client's request: unsupported ones, and those that the neutral layers report by location."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from osaurusd.errors import OsaurusError, UnsupportedParameter
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import Location


class FieldPaths:
    """Maps locations in a generation request to the fields of the body that it was parsed from.

    Args:
        paths: field paths by location pattern. A pattern also matches all locations below it; the longest match counts,
            and of several the first. In a path, `{0}`, `{1}` ... are what `EACH` matched, and `{prompt}` is the number
            of the prompt.
    """

    def __init__(self, paths: Mapping[Location, str]) -> None:
        self._paths = paths

    def path(self, location: Location, prompt: int = 0) -> str | None:
        """Return the path of the field at a location, or None if no field of the body corresponds to it."""
        for length in range(len(location), 0, -1):
            for pattern, path in self._paths.items():
                if len(pattern) == length and _matches(pattern, location):
                    matched = [step for step, expected in zip(location, pattern, strict=False) if expected == EACH]
                    return path.format(*matched, prompt=prompt)
        return None

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the field in errors that the block raises."""
        try:
            yield
        except OsaurusError as error:
            if self._path_of(error) is None:
                raise
            # No variable refers to the new error: with its traceback, that would be a reference cycle.
            raise self.name_field(error) from error

    def name_field(self, error: OsaurusError) -> OsaurusError:
        """Return the error with the path of the field in `param` and in front of the message."""
        path = self._path_of(error)
        return error if path is None else type(error)(f"`{path}`: {error.message}", param=path)

    def _path_of(self, error: OsaurusError) -> str | None:
        return None if error.location is None else self.path(error.location, error.prompt_index or 0)


def reject_unsupported(body: object, accepted: Mapping[str, Collection[Any]], prefix: str = "") -> None:
    """Reject fields that are not supported.

    Args:
        body: the object with the fields.
        accepted: for each unsupported field, the values besides null that do not change the response.
        prefix: what precedes the names of the fields in their paths.

    Raises:
        UnsupportedParameter: a field has another value.
    """
    for name, values in accepted.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            path = f"{prefix}{name}"
            raise UnsupportedParameter(f"`{path}` is not supported; omit it", param=path)


def _matches(pattern: Location, location: Location) -> bool:
    """Whether the pattern matches the beginning of the location."""
    return all(expected in (EACH, step) for expected, step in zip(pattern, location, strict=False))
