"""Grammars for structured output, in llguidance's dialect of Lark."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from llguidance import LLMatcher, LLParserLimits

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import (
    JsonObject,
    JsonSchema,
    Location,
    OutputConstraint,
    RequiredToolCalls,
    TextChoice,
    Tool,
)
from osaurusd.wire.errors import as_json
from osaurusd.worker.frontend import fallback_tools, schema_cost, schema_repair
from osaurusd.worker.frontend.output_check import OutputCheck, build_validator

# A lexer state takes 1 to 2 kB.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_MAX_REASON_LENGTH = 500

# What llguidance adds to Lark. `%json` could have a schema of any cost.
_EXTENSIONS = re.compile(r"%json|%lark|%regex|@\w+")

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

_RELAXED_OPTIONS = {**_JSON_OPTIONS, "coerce_one_of": True}
_DATA_KEYWORDS = {"const", "enum", "default", "examples"}


class Grammar(NamedTuple):
    """The grammar of an output, and the check of the complete output if the grammar does not enforce everything."""

    text: str
    check: OutputCheck | None


class _Rule(NamedTuple):
    """A rule for JSON, and a validator if the rule does not enforce all of the schema."""

    text: str
    validator: Any = None


def build_grammar(constraint: OutputConstraint, tools: list[Tool], *, allow_leading_newlines: bool) -> Grammar:
    """Build the grammar of an output.

    Args:
        constraint: what the output must be. Its schema, and those of the tools, have been repaired.
        tools: the request's tools; they include all that `constraint` names.
        allow_leading_newlines: the output may begin with newlines, as models write them after reasoning.

    Raises:
        InvalidRequest: a schema cannot be enforced.
    """
    check = None
    grammars: list[dict[str, str]] = []
    match constraint:
        case JsonObject():
            start, rules = "value", [_json_rule("value", {"type": "object"}, ("constraint",)).text]
        case JsonSchema(schema=schema):
            rule = _json_rule("value", schema, ("constraint", "schema"))
            start, rules = "value", [rule.text]
            check = OutputCheck(rule.validator) if rule.validator is not None else None
        case TextChoice(choices=choices):
            start, rules = "choice", [_choice_rule("choice", choices)]
        case RequiredToolCalls(names=names, max_calls=max_calls):
            grammars = _text_grammars(names, tools)
            rules, check = _call_rules(names, tools)
            start = _calls(names, tools, max_calls)
    start = f"start: /\\n{{0,2}}/ ({start})" if allow_leading_newlines else f"start: {start}"
    main = {"lark_grammar": "\n".join(["%llguidance {}", start, *rules])}
    return Grammar(json.dumps({"grammars": [main, *grammars]}), check)


def find_literals(constraint: OutputConstraint, tools: list[Tool]) -> Iterator[str]:
    """Yield the texts that an output may have to contain: names of properties, constants and choices."""
    match constraint:
        case TextChoice():
            yield from constraint.choices
        case JsonSchema():
            yield from _literals_of(constraint.schema)
        case RequiredToolCalls():
            for tool in tools:
                if tool.name in constraint.names:
                    yield from _literals_of(tool.parameters or {})


def _literals_of(schema: dict[str, Any]) -> Iterator[str]:
    for part in _subschemas(schema):
        for key in ("properties", "required", "const", "enum"):
            yield from _texts_in(part.get(key), with_values=key != "properties")


def _texts_in(value: Any, *, with_values: bool = True) -> Iterator[str]:
    """Yield the texts in a JSON value, and its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        if with_values:
            for each in value.values():
                yield from _texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)


def unusable_schema(reason: str, location: Location, subject: str = "") -> InvalidRequest:
    """Build the error for a schema that cannot be enforced. `subject` names the schema's owner, such as " of 'f'"."""
    # llguidance appends details for its own developers.
    reason = reason.partition("<non-verbose/>")[0].partition("<backtrace>")[0].strip()[:_MAX_REASON_LENGTH]
    return InvalidRequest(f"the schema{subject} cannot be used: {reason}", location=location)


def _choice_rule(name: str, choices: list[str]) -> str:
    try:
        schema_cost.check({"enum": choices})
    except ValueError as error:
        raise InvalidRequest(str(error), location=("constraint", "choices")) from error
    return f"{name}: {' | '.join(map(json.dumps, choices))}"


def _find_tools(names: list[str], tools: list[Tool]) -> list[tuple[int, Tool]]:
    """Return the named tools with their positions.

    Raises:
        InvalidRequest: a tool does not exist.
    """
    found = {tool.name: (index, tool) for index, tool in enumerate(tools)}
    for name in names:
        if name not in found:
            raise InvalidRequest(f"there is no tool {as_json(name)}", location=("constraint",))
    return [found[name] for name in names]


def _calls(names: list[str], tools: list[Tool], max_calls: int) -> str:
    """Return the expression for all calls. A call with text as its argument ends the output."""
    named = _find_tools(names, tools)
    by_json = [f"call_{number}" for number, (_, tool) in enumerate(named) if tool.grammar is None]
    last = " | ".join(f"call_{number}" for number in range(len(named)))
    if max_calls == 1 or not by_json:
        return last
    return f'(({" | ".join(by_json)}) "\\n"){{0,{max_calls - 1}}} ({last})'


def _call_rules(names: list[str], tools: list[Tool]) -> tuple[list[str], OutputCheck | None]:
    """Return the rules for calls in the format that `tool_calls.CallStreamer` reads, and the check of the calls."""
    rules: list[str] = []
    validators: dict[str, Any] = {}
    for number, (index, tool) in enumerate(_find_tools(names, tools)):
        if tool.grammar is not None:
            rules.append(f"call_{number}: {json.dumps(fallback_tools.text_call_prefix(tool.name))} @text_{index}")
            continue
        location = ("prompt", "tools", index)
        rule = _json_rule(f"arguments_{number}", tool.parameters or {"properties": {}}, location, tool.name)
        prefix = json.dumps(fallback_tools.call_prefix(tool.name))
        rules += [f'call_{number}: {prefix} arguments_{number} "}}"', rule.text]
        if rule.validator is not None:
            validators[tool.name] = rule.validator
    return rules, OutputCheck(by_tool=validators) if validators else None


def _text_grammars(names: list[str], tools: list[Tool]) -> list[dict[str, str]]:
    """Return the grammars of the tools whose argument is text.

    Raises:
        InvalidRequest: a grammar is invalid.
    """
    grammars = []
    for index, tool in _find_tools(names, tools):
        if tool.grammar is not None:
            fault = _grammar_fault(tool.grammar)
            if fault:
                reason = f"the grammar of {as_json(tool.name)} cannot be used: {fault[:_MAX_REASON_LENGTH]}"
                raise InvalidRequest(reason, location=("prompt", "tools", index))
            grammars.append({"name": f"text_{index}", "lark_grammar": tool.grammar})
    return grammars


def _grammar_fault(grammar: str) -> str:
    """Return why a grammar of a client cannot be used, or an empty text."""
    if extension := _EXTENSIONS.search(grammar):
        return f"`{extension[0]}` is not supported"
    fault: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar), limits=LIMITS)
    return "" if fault.startswith("WARNING") else fault


def _json_rule(name: str, schema: dict[str, Any], location: Location, tool: str | None = None) -> _Rule:
    """Build a rule for a value, or for the arguments of a tool. A schema that cannot be enforced is relaxed."""
    subject = "" if tool is None else f" of {as_json(tool)}"
    try:
        schema_cost.check(schema)
        closed = schema_repair.close_objects(schema)
        exact, relaxed = schema_repair.without_redundant_keywords(closed), schema_repair.relax(closed)
        if tool is not None:
            exact, relaxed = (_arguments_schema(each, tool, location) for each in (exact, relaxed))
        try:
            return _Rule(f"{name}: %json {_enforceable(exact, _JSON_OPTIONS)}")
        except ValueError:
            return _Rule(f"{name}: %json {_enforceable(relaxed, _RELAXED_OPTIONS)}", build_validator(schema))
    except (ValueError, RecursionError) as failure:
        raise unusable_schema(str(failure), location, subject) from failure


def _enforceable(schema: dict[str, Any], options: dict[str, Any]) -> str:
    """Return a schema as text for llguidance.

    Raises:
        ValueError: llguidance cannot enforce the schema.
    """
    _check_enforceable(schema)
    text = json.dumps({**schema, "x-guidance": options})
    error: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), limits=LIMITS)
    if error and not error.startswith("WARNING"):
        raise ValueError(error)
    return text


def _arguments_schema(schema: dict[str, Any], tool: str, location: Location) -> dict[str, Any]:
    """Return the schema of a tool's arguments: an object, which is empty if the tool declares an empty one."""
    kind = schema.get("type", "object")
    if kind != "object" and (not isinstance(kind, list) or "object" not in kind):
        raise unusable_schema("the type of arguments must be `object`", location, f" of {as_json(tool)}")
    if schema.get("properties") == {} and not schema.keys() & schema_repair.COMBINING_KEYWORDS:
        return {"additionalProperties": False, **schema, "type": "object"}
    return {**schema, "type": "object"}


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
