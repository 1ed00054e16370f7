"""Limits on the cost of compiling a JSON schema. llguidance limits its parser, but not everything before it.

Without these limits, a chain of references or a long list of required names overflows the stack and ends the process,
and a large `multipleOf` exhausts memory. Measured with llguidance 1.9 and a stack of 8 MB: at each limit, compiling
takes at most 1 s and a third of the stack.
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
    """Reject a schema that costs too much to compile.

    Raises:
        ValueError: names the limit and the value that exceeds it.
    """
    # This limit makes the other checks cheap.
    _check_limit("values", sum(1 for _ in _values(schema)), MAX_VALUES)
    parts = [value for value in _values(schema) if isinstance(value, dict)]
    _check_names(parts)
    _check_references(schema, parts)
    _check_multiples(parts)


def _check_names(parts: list[dict[str, Any]]) -> None:
    required = [_length(part, "required") for part in parts]
    _check_limit("`required` names of one object", max(required), MAX_REQUIRED)
    _check_limit("names of properties", sum(required) + sum(_length(part, "properties") for part in parts), MAX_NAMES)
    _check_limit("`patternProperties`", sum(_length(part, "patternProperties") for part in parts), MAX_PATTERNS)


def _check_references(schema: Mapping[str, Any], parts: list[dict[str, Any]]) -> None:
    """Limit the depth with references resolved. llguidance recurses into every target."""
    references = [part["$ref"] for part in parts if isinstance(part.get("$ref"), str)]
    _check_limit("`$ref`", len(references), MAX_REFERENCES)
    targets = set(references)
    _check_limit("`$ref` targets", len(targets), MAX_TARGETS)
    levels = sum(_depth(_resolve(schema, reference)) for reference in targets)
    _check_limit("nesting levels, `$ref` targets included", _depth(schema) + levels, MAX_LEVELS)


def _check_multiples(parts: list[dict[str, Any]]) -> None:
    """Limit automaton states: a `multipleOf` has one per remainder, an intersection one per pair."""
    sizes = [_remainders(part["multipleOf"]) for part in parts if "multipleOf" in part]
    intersected = any(part.keys() & _INTERSECTING for part in parts)
    _check_limit("`multipleOf` states", math.prod(sizes) if intersected else sum(sizes), MAX_MULTIPLE)


def _remainders(multiple: object) -> int:
    try:
        number = Decimal(str(multiple)).normalize()
    except InvalidOperation:  # not a number; llguidance reports it
        return 1
    digits = int("".join(map(str, number.as_tuple().digits)))
    return max(digits, int(min(abs(number), Decimal(MAX_MULTIPLE + 1))), 1) if number.is_finite() else MAX_MULTIPLE + 1


def _check_limit(subject: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(f"it is too expensive: {count} {subject}, but at most {limit} are allowed")


def _length(part: dict[str, Any], key: str) -> int:
    value = part.get(key)
    return len(value) if isinstance(value, dict | list) else 0


def _values(value: Any) -> Iterator[Any]:
    """Yield the value and all values inside it, without recursion."""
    pending = [value]
    while pending:
        value = pending.pop()
        yield value
        pending.extend(_members(value))


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [member for item in level for member in _members(item)]
        depth += 1
    return depth


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _resolve(schema: Any, reference: str) -> Any:
    """Resolve a reference within the schema. Return the whole schema if that is not possible."""
    if not reference.startswith("#/"):
        return schema
    value = schema
    for name in reference[2:].split("/"):
        if not isinstance(value, dict):
            return schema
        value = value.get(name.replace("~1", "/").replace("~0", "~"), schema)
    return value
