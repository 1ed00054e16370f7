"""Grammars for structured output, in llguidance's dialect of Lark."""

import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import JsonObject, JsonSchema, Location, OutputConstraint, RequiredToolCalls, Tool
from osaurusd.worker.frontend import fallback_tools, schema_cost

MAX_REQUIRED_CALLS = 8
"""Maximum number of calls in an output that must consist of calls."""

# A lexer state takes 1 to 2 kB.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_MAX_REASON_LENGTH = 500

# White space is at most one line break with indentation between two tokens: without a limit, a model can generate
# white space forever. Only those escapes are allowed that cannot spell a key in a second way.
_JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"\n? {0,12}",
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": r'"\bfnrt',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}

_COMBINING_KEYWORDS = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}
_DATA_KEYWORDS = {"const", "enum", "default", "examples"}


def build_grammar(constraint: OutputConstraint, tools: list[Tool], *, allow_leading_newlines: bool) -> str:
    """Build the grammar of an output.

    Args:
        constraint: what the output must be.
        tools: the request's tools; they include all that `constraint` names.
        allow_leading_newlines: the output may begin with newlines, as models write them after reasoning.

    Raises:
        InvalidRequest: a schema cannot be enforced.
    """
    match constraint:
        case JsonObject():
            start, rules = "value", [_json_rule("value", {"type": "object"}, ("constraint",))]
        case JsonSchema(schema=schema):
            start, rules = "value", [_json_rule("value", schema, ("constraint", "schema"))]
        case RequiredToolCalls(names=names, parallel=parallel):
            more = f' ("\\n" call){{0,{MAX_REQUIRED_CALLS - 1}}}' if parallel else ""
            start, rules = f"call{more}", list(_call_rules(names, tools))
    start = f"start: /\\n{{0,2}}/ {start}" if allow_leading_newlines else f"start: {start}"
    grammar: str = LLMatcher.grammar_from_lark("\n".join(["%llguidance {}", start, *rules]))
    return grammar


def unusable_schema(reason: str, location: Location, subject: str = "") -> InvalidRequest:
    """Build the error for a schema that cannot be enforced. `subject` names the schema's owner, such as " of 'f'"."""
    # llguidance appends details for its own developers.
    reason = reason.partition("<non-verbose/>")[0].partition("<backtrace>")[0].strip()[:_MAX_REASON_LENGTH]
    return InvalidRequest(f"the schema{subject} cannot be used: {reason}", location=location)


def _call_rules(names: list[str], tools: list[Tool]) -> Iterator[str]:
    """Yield the rules for calls in the format that `tool_calls.CallStreamer` reads."""
    indexes = {tool.name: index for index, tool in enumerate(tools)}
    yield "call: " + " | ".join(f"call_{number}" for number in range(len(names)))
    for number, name in enumerate(names):
        if name not in indexes:
            raise InvalidRequest(f"there is no tool {name!r}", location=("constraint",))
        location = ("prompt", "tools", indexes[name])
        schema = _arguments_schema(tools[indexes[name]], location)
        yield f'call_{number}: {json.dumps(fallback_tools.call_prefix(name))} arguments_{number} "}}"'
        yield _json_rule(f"arguments_{number}", schema, location, subject=f" of {name!r}")


def _json_rule(name: str, schema: dict[str, Any], location: Location, subject: str = "") -> str:
    try:
        schema_cost.check(schema)
        _check_enforceable(schema)
        text = json.dumps({**schema, "x-guidance": _JSON_OPTIONS})
        error = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), limits=LIMITS)
    except (ValueError, RecursionError) as failure:
        raise unusable_schema(str(failure), location, subject) from failure
    if error and not error.startswith("WARNING"):
        raise unusable_schema(error, location, subject)
    return f"{name}: %json {text}"


def _arguments_schema(tool: Tool, location: Location) -> dict[str, Any]:
    """Return the schema of a tool's arguments: an object, without undeclared properties if the tool declares any."""
    schema = tool.parameters or {"properties": {}}
    if schema.get("type", "object") != "object":
        raise unusable_schema("the type of arguments must be `object`", location, f" of {tool.name!r}")
    if "properties" in schema and not schema.keys() & _COMBINING_KEYWORDS:
        return {"type": "object", "additionalProperties": False, **schema}
    return {"type": "object", **schema}


def _check_enforceable(schema: dict[str, Any]) -> None:
    """Reject keywords that llguidance accepts without enforcing them.

    Raises:
        ValueError: names the keyword.
    """
    for part in _subschemas(schema):
        min_properties = part.get("minProperties", 0)
        # llguidance lets a model repeat a key that the schema does not list.
        lists_all_keys = part.get("additionalProperties") is False and "patternProperties" not in part
        if isinstance(min_properties, int) and min_properties > 1 and not lists_all_keys:
            raise ValueError("`minProperties` above 1 needs `properties` and `additionalProperties: false`")


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key not in _DATA_KEYWORDS:
                yield from _subschemas(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _subschemas(item)
