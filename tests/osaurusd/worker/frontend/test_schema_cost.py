"""Schemas that would take a worker's memory, its stack or its time are rejected before they reach llguidance."""

import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import JsonSchema, RequiredToolCalls, TextChoice, Tool
from osaurusd.worker.frontend import grammar, schema_cost


def chain(length, step):
    """Definitions each of which refers to the next one."""
    links = {f"d{at}": step({"$ref": f"#/$defs/d{at + 1}"}) for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "integer"}}}


def wrapped(schema, levels):
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        # Without limits, each of these crashed a worker or kept it busy for more than 10 s.
        ({"type": "integer", "multipleOf": 123456789}, "multipleOf"),
        ({"type": "integer", "multipleOf": 1e300}, "multipleOf"),
        ({"type": "number", "multipleOf": 1.23456789}, "multipleOf"),
        ({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (101, 103, 107)]}, "multipleOf"),
        ({"properties": {f"k{at}": {"type": "integer", "multipleOf": 997} for at in range(500)}}, "multipleOf"),
        ({"type": "object", "required": [str(at) for at in range(15_000)]}, "required"),
        ({"type": "object", "patternProperties": {f"^k{at}$": {} for at in range(500)}}, "patternProperties"),
        (chain(3000, lambda step: step), r"\$ref"),
        (chain(99, lambda step: wrapped(step, 30)), "levels"),
        ({"anyOf": [{"$ref": "#"}] * 3000}, r"\$ref"),
        ({"const": [[]] * 40_000}, "values"),
        ({"properties": {f"k{at}": {} for at in range(6000)}}, "names"),
    ],
)
def test_a_too_expensive_schema_is_rejected_with_the_limit(schema, what):
    with pytest.raises(InvalidRequest, match=rf"too expensive: .*{what}.*at most \d+ are allowed") as caught:
        grammar.build_grammar(JsonSchema(schema=schema), [], allow_leading_newlines=False)
    assert caught.value.location == ("constraint", "schema")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 0.01},
        {"type": "integer", "multipleOf": schema_cost.MAX_MULTIPLE},
        {"type": "object", "required": [str(at) for at in range(200)]},
        {"type": "object", "required": ["a"], "properties": {"required": {"enum": ["multipleOf", "$ref"]}}},
        chain(60, lambda step: wrapped(step, 2)),
        chain(3, lambda step: {"type": "array", "items": step}),
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/a~1b/items", "$defs": {"a/b": {"items": {"type": "string"}}}},
    ],
)
def test_ordinary_schemas_are_accepted(schema):
    assert "%json" in grammar.build_grammar(JsonSchema(schema=schema), [], allow_leading_newlines=False).text


def test_choices_have_the_same_limit():
    with pytest.raises(InvalidRequest, match="too expensive") as caught:
        grammar.build_grammar(TextChoice(choices=["a"] * 20_001), [], allow_leading_newlines=False)
    assert caught.value.location == ("constraint", "choices")


def test_tool_parameters_have_the_same_limits():
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 123456789}}}
    tools = [Tool(name="f", parameters=parameters)]
    with pytest.raises(InvalidRequest, match="multipleOf") as caught:
        grammar.build_grammar(RequiredToolCalls(names=["f"]), tools, allow_leading_newlines=False)
    assert caught.value.location == ("prompt", "tools", 0)


def test_error_messages_omit_llguidances_internals():
    with pytest.raises(InvalidRequest) as caught:
        grammar.build_grammar(JsonSchema(schema={"type": "string", "pattern": "((("}), [], allow_leading_newlines=False)
    assert "verbose" not in caught.value.message
