"""Adapts JSON schemas: repairs malformed parts, and removes what llguidance does not support.

Clients send the schemas of many authors together, such as those of all tools of several MCP servers. One unusual
keyword must not make all of them unusable.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

_SCHEMA_KEYWORDS = (
    *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_SCHEMA_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_SCHEMA_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")

_MAPS = (*_SCHEMA_MAPS, "dependencies", "dependentRequired")
_SIZES = (
    "maxItems",
    "maxLength",
    "maxProperties",
    "minItems",
    "minLength",
    "minProperties",
    "maxContains",
    "minContains",
)
# Null is a value of these keywords, not an omission.
_DATA_KEYWORDS = ("const", "default", "example")
_ANNOTATIONS = {"$comment", "default", "description", "examples", "format", "title"}

COMBINING_KEYWORDS = {
    *("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "propertyNames", "unevaluatedProperties"),
    *("if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas"),
}
"""Next to these, `properties` need not list all properties of an object."""

# What is allowed below one of these is not what the schema allows.
_CONDITIONAL_KEYWORDS = {"oneOf", "not", "contains", "if", "dependencies", "dependentSchemas", "unevaluatedProperties"}
_OBJECT_KEYWORDS = {
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties"),
}

_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
# Names from programming languages, which authors of schemas write by mistake.
_TYPE_ALIASES = {
    **dict.fromkeys(("str", "text", "char"), "string"),
    **dict.fromkeys(("int", "long", "int32", "int64"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("list", "tuple", "set"), "array"),
    **dict.fromkeys(("dict", "map", "struct"), "object"),
    **dict.fromkeys(("none", "nil"), "null"),
    "bool": "boolean",
}
_ANY_TYPE = ("", "any")

# Longer values are not looked up, because llguidance would have to compile them.
_MAX_FORMAT_LENGTH = 100
_MAX_PATTERN_LENGTH = 2000

_DIALECT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/2019-09|draft/2020-12)/schema#?\Z")


def repair(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy in which malformed parts with an obvious meaning are corrected.

    Serializers write null for an omitted keyword, an empty list for an empty object, or a float for an integer.
    """
    repaired: dict[str, Any] = json.loads(json.dumps(schema))
    for part in _parts(repaired):
        _repair_part(part)
    return repaired


def relax(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a repaired schema without what llguidance does not support. It allows whatever `schema` allows.

    What cannot be satisfied, such as `not: {}`, remains, so that llguidance rejects it.
    """
    relaxed: dict[str, Any] = json.loads(json.dumps(schema))
    for part in _parts(relaxed):
        for keyword, restricts_nothing in _UNSUPPORTED.items():
            if keyword in part and (restricts_nothing(part) or keyword in _RELAXED):
                _remove(part, keyword)
        _relax_patterns(part)
        _relax_sizes(part)
    return relaxed


def without_redundant_keywords(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a repaired schema without the keywords that are not supported but restrict nothing."""
    reduced: dict[str, Any] = json.loads(json.dumps(schema))
    for part in _parts(reduced):
        for keyword, restricts_nothing in _UNSUPPORTED.items():
            if keyword in part and restricts_nothing(part):
                del part[keyword]
    return reduced


def close_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a repaired schema in which objects have no properties besides those that their schema lists.

    Small models otherwise invent properties until they reach the limit of tokens. An `additionalProperties` of the
    client stays. If schemas are combined, a part may list only some of the properties, and only the root is closed.
    """
    closed: dict[str, Any] = json.loads(json.dumps(schema))
    parts = [closed] if any(map(_combines_schemas, _parts(closed))) else _parts(closed)
    for part in parts:
        if _lists_properties(part):
            part["additionalProperties"] = False
    return closed


def _combines_schemas(part: dict[str, Any]) -> bool:
    """Whether several schemas apply to one value, or one that the value must not match."""
    in_place = part.keys() & {"$ref", "anyOf", "allOf"}
    return bool(
        part.keys() & _CONDITIONAL_KEYWORDS
        or len(in_place) > 1
        or (in_place and part.keys() & _OBJECT_KEYWORDS)
        or len(_as_list(part.get("allOf"))) > 1
    )


def _lists_properties(part: dict[str, Any]) -> bool:
    """Whether the schema of an object lists properties and does not mention others."""
    properties = part.get("properties")
    if not isinstance(properties, dict) or not properties:
        return False
    if part.keys() & {"additionalProperties", "minProperties", *COMBINING_KEYWORDS}:
        return False
    return all(isinstance(name, str) and name in properties for name in part.get("required", []))


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schema and its subschemas, each before its own subschemas. Not recursive: schemas can be deep."""
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending.extend(_children(part))


def _children(part: dict[str, Any]) -> Iterator[Any]:
    for keyword in _SCHEMA_KEYWORDS:
        yield part.get(keyword)
    for keyword in _SCHEMA_MAPS:
        if isinstance(children := part.get(keyword), dict):
            yield from children.values()
    for keyword in _SCHEMA_LISTS:
        if isinstance(children := part.get(keyword), list):
            yield from children


# Repair


def _repair_part(part: dict[str, Any]) -> None:
    for keyword in [keyword for keyword, value in part.items() if value is None and keyword not in _DATA_KEYWORDS]:
        del part[keyword]
    for keyword in (*_MAPS, "additionalProperties"):
        if part.get(keyword) == []:
            part[keyword] = {}
    for keyword in _SIZES:
        if isinstance(size := part.get(keyword), float) and size.is_integer():
            part[keyword] = int(size)
    if not isinstance(part.get("required", []), list):
        del part["required"]
    if isinstance(dialect := part.get("$schema"), str) and not _DIALECT.match(dialect):
        del part["$schema"]
    _repair_type(part)
    _repair_bounds(part)


def _repair_type(part: dict[str, Any]) -> None:
    type_ = part.get("type")
    if isinstance(type_, str):
        part["type"] = _type_name(type_)
    elif isinstance(type_, list):
        part["type"] = [_type_name(item) if isinstance(item, str) else item for item in type_]
    if part.get("type") in _ANY_TYPE or (isinstance(type_, list) and any(item in _ANY_TYPE for item in part["type"])):
        del part["type"]


def _type_name(name: str) -> str:
    lower = name.lower()
    return lower if lower in _TYPES else _TYPE_ALIASES.get(lower, name if lower not in _ANY_TYPE else lower)


def _repair_bounds(part: dict[str, Any]) -> None:
    """Replace the exclusive bounds of draft 4, which are switches, by those of later drafts, which are numbers."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(part.get(exclusive), bool) and part.pop(exclusive) and bound in part:
            part[exclusive] = part.pop(bound)


# Relaxation


def _is_any(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not schema.keys() - _ANNOTATIONS)


def _allows_all_names(part: dict[str, Any]) -> bool:
    names = part["propertyNames"]
    if isinstance(names, dict) and "string" in (names.get("type"), *_as_list(names.get("type"))):
        names = {key: value for key, value in names.items() if key != "type"}
    return _is_any(names)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _contains_nothing(part: dict[str, Any]) -> bool:
    return part.get("minContains") == 0 and "maxContains" not in part


@lru_cache(maxsize=256)
def _is_supported(keyword: str, value: str) -> bool:
    text = json.dumps({"type": "string", keyword: value})
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text))


def _has_unknown_format(part: dict[str, Any]) -> bool:
    """Whether `format` is only an annotation, as the specification of JSON Schema defines it."""
    name = part["format"]
    return not isinstance(name, str) or len(name) > _MAX_FORMAT_LENGTH or not _is_supported("format", name)


def _relax_patterns(part: dict[str, Any]) -> None:
    """Remove the patterns that are not supported, such as those with look-around."""
    if isinstance(pattern := part.get("pattern"), str) and not _is_supported_pattern(pattern):
        del part["pattern"]
    names = part.get("patternProperties")
    if isinstance(names, dict) and not all(map(_is_supported_pattern, names)):
        part["patternProperties"] = {name: value for name, value in names.items() if _is_supported_pattern(name)}
        part.pop("additionalProperties", None)


def _is_supported_pattern(pattern: str) -> bool:
    return len(pattern) > _MAX_PATTERN_LENGTH or _is_supported("pattern", pattern)


_UNSUPPORTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "format": _has_unknown_format,
    "uniqueItems": lambda part: not part["uniqueItems"],
    "propertyNames": _allows_all_names,
    "dependentRequired": lambda part: not part["dependentRequired"],
    "dependentSchemas": lambda part: not part["dependentSchemas"],
    "dependencies": lambda part: not part["dependencies"],
    "contains": _contains_nothing,
    "minContains": lambda part: "contains" not in part,
    "maxContains": lambda part: "contains" not in part,
    "then": lambda part: "if" not in part,
    "else": lambda part: "if" not in part,
    "if": lambda part: not part.keys() & {"then", "else"},
    "not": lambda part: part["not"] is False,
    "unevaluatedProperties": lambda part: _is_any(part["unevaluatedProperties"]),
    "unevaluatedItems": lambda part: _is_any(part["unevaluatedItems"]),
    # Anchors matter for references only.
    **dict.fromkeys(("$dynamicAnchor", "$recursiveAnchor"), lambda _: True),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), lambda _: False),
}
"""The keywords that llguidance does not support, and whether they restrict nothing in a schema that has them."""

_RELAXED = _UNSUPPORTED.keys() - {"format"}


def _remove(part: dict[str, Any], keyword: str) -> None:
    value = part[keyword]
    if keyword == "not" and _is_any(value):
        return
    del part[keyword]
    if keyword == "propertyNames" and isinstance(value, dict):
        _restrict_names(part, value)


def _restrict_names(part: dict[str, Any], names: dict[str, Any]) -> None:
    """Express `propertyNames` by keywords that are supported, where that is possible."""
    if part.keys() & {"properties", "patternProperties", "required"}:
        return
    values = part.get("additionalProperties", {})
    if isinstance(names.get("enum"), list) and all(isinstance(name, str) for name in names["enum"]):
        part |= {"properties": dict.fromkeys(names["enum"], values), "additionalProperties": False}
    elif isinstance(names.get("pattern"), str):
        part |= {"patternProperties": {names["pattern"]: values}, "additionalProperties": False}


def _relax_sizes(part: dict[str, Any]) -> None:
    """Relax the number of properties where llguidance accepts no limits, or a minimum that it does not enforce."""
    optional = part.get("properties", {}).keys() - set(part.get("required", []))
    if optional:
        part.pop("minProperties", None)
        part.pop("maxProperties", None)
    elif isinstance(minimum := part.get("minProperties"), int) and minimum > 1:
        part["minProperties"] = 1
