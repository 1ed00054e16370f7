"""What JSON leaves open and this server does not take: repeated keys, other encodings, shapes without end.

Of a repeated key one reader takes the first value and another one the last, so that what was checked is not what is
done. All this is looked at besides decoding into types, which says most of what is wrong, and with the path.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from osaurusd.config import Input
from osaurusd.errors import InvalidJson, InvalidRequest
from osaurusd.http.outline import Outline, outline

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    codecs.BOM_UTF8: "a byte order mark",
}


def text(body: bytes) -> str:
    """The text that the bytes are.

    Raises:
        InvalidJson: they are not plain UTF-8.
    """
    for mark, name in _MARKS.items():
        if body.startswith(mark):
            raise InvalidJson(f"the body is not valid JSON: it begins with {name}; send UTF-8 without a mark")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: it is not UTF-8 at byte {error.start}") from error


def check_size(body: bytes, limits: Input) -> Outline:
    """The outline of a body that has no more in it than may be.

    Raises:
        InvalidRequest: it has.
    """
    found = outline(body, limits.max_values)
    if found is None or found.values > limits.max_values:
        raise _too_many("values", limits.max_values, "max_values")
    if found.members > limits.max_members:
        raise _too_many("members of objects", limits.max_members, "max_members")
    return found


def check_depth(found: Outline, limits: Input) -> None:
    """Refuse JSON that is nested too deeply.

    Raises:
        InvalidJson: it is.
    """
    if found.is_deeper_than(limits.max_depth):
        raise InvalidJson(f"the body is nested too deeply: at most {limits.max_depth} levels (`input.max_depth`)")


def check_keys(content: str) -> None:
    """Refuse JSON in which an object has a key twice, and numbers that no reader can be trusted with.

    Raises:
        InvalidRequest: it has; `param` is the path of the key.
    """
    try:
        _CHECKING.decode(content)
    except _RepeatedKeyError:
        path = next(_repeated(_MARKING.decode(content), ""))
        raise InvalidRequest(f"`{path}`: stands there more than once", param=path) from None
    except ValueError as error:
        raise InvalidRequest("the body: a number in it has too many digits") from error


def reason(content: str, error: Exception) -> str:
    """What is wrong with a text that msgspec did not read."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return str(error)
    return "a text in it has half of a surrogate pair, such as `\\ud83d` alone"


class _RepeatedKeyError(Exception):
    """An object has a key more than once."""


class _Repeated:
    """In place of an object that has `key` more than once."""

    def __init__(self, key: str) -> None:
        self.key = key


def _check(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len(dict(pairs)) < len(pairs):
        raise _RepeatedKeyError


def _mark(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            return _Repeated(key)
        seen[key] = value
    return seen


_CHECKING = json.JSONDecoder(object_pairs_hook=_check)
_MARKING = json.JSONDecoder(object_pairs_hook=_mark)


def _repeated(value: Any, path: str) -> Iterator[str]:
    match value:
        case _Repeated():
            yield f"{path}.{value.key}".lstrip(".")
        case dict():
            for key, member in value.items():
                yield from _repeated(member, f"{path}.{key}")
        case list():
            for at, item in enumerate(value):
                yield from _repeated(item, f"{path}[{at}]")


def _too_many(what: str, limit: int, key: str) -> InvalidRequest:
    return InvalidRequest(f"the body: at most {limit} {what} in all (`input.{key}`)")
