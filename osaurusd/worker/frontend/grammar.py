"""Grammars of structured output, in the dialect of llguidance."""

import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import JsonObject, JsonSchema, Location, OutputConstraint, RequiredToolCalls, Tool
from osaurusd.worker.frontend import schema_cost, tools

MAX_CALLS = 8
"""Calls in one answer that must be calls."""

# A state takes 1 to 2 kB, and one request may not take the memory of all.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_MAX_REASON = 500

# White space is a line break and indentation, once between two things: without a limit, a model that
# likes white space goes on with it for ever. Of escapes, those that cannot spell a key in a second way.
_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"\n? {0,12}",
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": r'"\bfnrt',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}

_COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}
_DATA = {"const", "enum", "default", "examples"}


def make(constraint: OutputConstraint, offered: list[Tool], *, after_thought: bool) -> str:
    """A grammar in llguidance's Lark dialect.

    Args:
        constraint: what the answer is to be.
        offered: the request's tools, among them all that `constraint` names.
        after_thought: the answer may begin with an empty line, as models are used to after a thought.

    Raises:
        InvalidRequest: there can be no such grammar.
    """
    match constraint:
        case JsonObject():
            start, rules = "value", [_json_rule("value", {"type": "object"}, ("constraint",))]
        case JsonSchema(schema=schema):
            start, rules = "value", [_json_rule("value", schema, ("constraint", "schema"))]
        case RequiredToolCalls(names=names, parallel=parallel):
            more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
            start, rules = f"call{more}", list(_call_rules(names, offered))
    start = f"start: /\\n{{0,2}}/ {start}" if after_thought else f"start: {start}"
    grammar: str = LLMatcher.grammar_from_lark("\n".join(["%llguidance {}", start, *rules]))
    return grammar


def _call_rules(names: list[str], offered: list[Tool]) -> Iterator[str]:
    """The form that `calls.LiveCalls` reads."""
    by_name = {tool.name: tool for tool in offered}
    yield "call: " + " | ".join(f"call_{at}" for at in range(len(names)))
    for at, name in enumerate(names):
        if name not in by_name:
            raise InvalidRequest(f"there is no tool {name!r}", location=("constraint",))
        yield f'call_{at}: {json.dumps(tools.head(name))} arguments_{at} "}}"'
        yield _json_rule(f"arguments_{at}", _arguments(by_name[name]), ("prompt", "tools"), of=f" of {name!r}")


def _json_rule(name: str, schema: dict[str, Any], location: Location, of: str = "") -> str:
    """A rule for JSON that the schema accepts.

    Raises:
        InvalidRequest: there can be no such rule.
    """
    try:
        schema_cost.check(schema)
        _check(schema)
        text = json.dumps({**schema, "x-guidance": _OPTIONS})
        error = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), limits=LIMITS)
    except (ValueError, RecursionError) as failure:
        raise refused(str(failure), location, of) from failure
    if error and not error.startswith("WARNING"):
        raise refused(error, location, of)
    return f"{name}: %json {text}"


def refused(reason: str, location: Location, of: str = "") -> InvalidRequest:
    """The error for a schema that answers cannot be held to. `of` says whose it is, with a space before it."""
    # What llguidance adds for its own developers helps nobody here.
    said = reason.partition("<non-verbose/>")[0].partition("<backtrace>")[0].strip()[:_MAX_REASON]
    return InvalidRequest(f"the schema{of} cannot be used: {said}", location=location)


def _arguments(function: Tool) -> dict[str, Any]:
    """What the arguments of a function have to be: an object, and only of what the function names, if it does."""
    schema = function.parameters or {"properties": {}}
    if schema.get("type", "object") != "object":
        raise refused("arguments are of the type `object`", ("prompt", "tools"), f" of {function.name!r}")
    if "properties" in schema and not schema.keys() & _COMBINING:
        return {"type": "object", "additionalProperties": False, **schema}
    return {"type": "object", **schema}


def _check(schema: dict[str, Any]) -> None:
    """Refuse what llguidance accepts without holding answers to it.

    Raises:
        ValueError: says what that is.
    """
    for part in _parts(schema):
        least = part.get("minProperties", 0)
        # Of keys that the schema does not spell out, llguidance lets a model repeat one.
        spelled_out = part.get("additionalProperties") is False and "patternProperties" not in part
        if isinstance(least, int) and least > 1 and not spelled_out:
            raise ValueError("`minProperties` above 1 needs `properties` and `additionalProperties: false`")


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key not in _DATA:
                yield from _parts(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _parts(item)
