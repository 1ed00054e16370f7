"""What a JSON schema may cost: llguidance bounds what its parser does, but not all that it does before.

Without these bounds a chain of references or a long list of required names overflows its stack, which ends the
process, and a large `multipleOf` takes all memory. The numbers were measured with llguidance 1.9 and a thread's stack
of 8 MB: at each of them it takes a second at most, and a third of the stack.
"""

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_VALUES = 20_000
MAX_NAMES = 5_000
MAX_REQUIRED = 1_000
MAX_PATTERNS = 100
MAX_REFERENCES = 500
MAX_TARGETS = 100
MAX_LEVELS = 1_000
MAX_MULTIPLE = 100_000

_INTERSECTING = {"$ref", "allOf", "anyOf", "oneOf"}


def check(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that costs too much to compile.

    Raises:
        ValueError: says what there is too much of, and how much may be.
    """
    # The first bound keeps the others cheap to find out.
    _bound("values", sum(1 for _ in _values(schema)), MAX_VALUES)
    parts = [value for value in _values(schema) if isinstance(value, dict)]
    _check_names(parts)
    _check_references(schema, parts)
    _check_multiples(parts)


def _check_names(parts: list[dict[str, Any]]) -> None:
    required = [_length(part, "required") for part in parts]
    _bound("`required` names of one object", max(required), MAX_REQUIRED)
    _bound("names of properties", sum(required) + sum(_length(part, "properties") for part in parts), MAX_NAMES)
    _bound("`patternProperties`", sum(_length(part, "patternProperties") for part in parts), MAX_PATTERNS)


def _check_references(schema: Mapping[str, Any], parts: list[dict[str, Any]]) -> None:
    """Every reference is followed on the stack: a path through the schema has no more levels than all targets have."""
    references = [part["$ref"] for part in parts if isinstance(part.get("$ref"), str)]
    _bound("`$ref`", len(references), MAX_REFERENCES)
    targets = set(references)
    _bound("`$ref` targets", len(targets), MAX_TARGETS)
    levels = sum(_levels(_target(schema, reference)) for reference in targets)
    _bound("levels, those of `$ref` targets counted in,", _levels(schema) + levels, MAX_LEVELS)


def _check_multiples(parts: list[dict[str, Any]]) -> None:
    """A `multipleOf` is an automaton with a state for every remainder, and an intersection one for every pair."""
    sizes = [_remainders(part["multipleOf"]) for part in parts if "multipleOf" in part]
    intersected = any(part.keys() & _INTERSECTING for part in parts)
    _bound("the size of `multipleOf`", math.prod(sizes) if intersected else sum(sizes), MAX_MULTIPLE)


def _remainders(multiple: object) -> int:
    try:
        number = Decimal(str(multiple)).normalize()
    except InvalidOperation:  # no number, which is for llguidance to say
        return 1
    digits = int("".join(map(str, number.as_tuple().digits)))
    return max(digits, int(min(abs(number), Decimal(MAX_MULTIPLE + 1))), 1) if number.is_finite() else MAX_MULTIPLE + 1


def _bound(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise ValueError(f"it is too expensive: {what} may be {limit} at most, not {found}")


def _length(part: dict[str, Any], key: str) -> int:
    value = part.get(key)
    return len(value) if isinstance(value, dict | list) else 0


def _values(value: Any) -> Iterator[Any]:
    """The value and all values in it, without a stack."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        waiting.extend(_members(value))


def _levels(value: Any) -> int:
    level, found = [value], 0
    while level:
        level = [member for one in level for member in _members(one)]
        found += 1
    return found


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _target(schema: Any, reference: str) -> Any:
    """What a reference within the schema means; the whole schema if that is not plain to see."""
    if not reference.startswith("#/"):
        return schema
    value = schema
    for name in reference[2:].split("/"):
        if not isinstance(value, dict):
            return schema
        value = value.get(name.replace("~1", "/").replace("~0", "~"), schema)
    return value
