"""Schemas as clients send them become schemas that llguidance and chat templates accept."""

import json

import jsonschema
import pytest
from llguidance import LLMatcher

from osaurusd.inference.request import RequiredToolCalls, Tool
from osaurusd.worker.frontend import grammar, schema_repair

MALFORMED = [
    ({"type": "object", "properties": []}, {"type": "object", "properties": {}}),
    ({"type": "object", "properties": None, "required": None}, {"type": "object"}),
    ({"type": "object", "required": {}}, {"type": "object"}),
    ({"type": "object", "additionalProperties": []}, {"type": "object", "additionalProperties": {}}),
    ({"properties": {"a": {"type": "string", "enum": None}}}, {"properties": {"a": {"type": "string"}}}),
    ({"type": "string", "minLength": 2.0, "maxLength": None}, {"type": "string", "minLength": 2}),
    ({"type": "STRING"}, {"type": "string"}),
    ({"type": "int"}, {"type": "integer"}),
    ({"type": ["str", "None"]}, {"type": ["string", "null"]}),
    ({"type": "any", "description": "x"}, {"description": "x"}),
    ({"type": ""}, {}),
    ({"type": ["string", "any"]}, {}),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, {"type": "integer", "exclusiveMinimum": 1}),
    ({"type": "integer", "maximum": 1, "exclusiveMaximum": False}, {"type": "integer", "maximum": 1}),
    ({"$schema": "http://example.com/own", "type": "object"}, {"type": "object"}),
    ({"items": [{"type": "dict"}, {"type": "list"}]}, {"items": [{"type": "object"}, {"type": "array"}]}),
    (
        {"anyOf": [{"type": "float"}, {"items": {"type": "bool"}}]},
        {"anyOf": [{"type": "number"}, {"items": {"type": "boolean"}}]},
    ),
]
UNCHANGED = [
    {"type": "object", "properties": {"type": {"type": "string"}, "required": {"enum": [None, 1.0]}}, "default": None},
    {"const": None},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
    {"type": "foo"},
    {"default": {"properties": [], "type": "int"}, "examples": [{"required": None}]},
    {"properties": {"a": True, "b": False}},
]


@pytest.mark.parametrize(("schema", "repaired"), MALFORMED)
def test_malformed_part_with_an_obvious_meaning_is_corrected(schema, repaired):
    nested = {"type": "object", "properties": {"x": schema}, "$defs": {"y": schema}}
    assert schema_repair.repair(schema) == repaired
    assert schema_repair.repair(nested) == {**nested, "properties": {"x": repaired}, "$defs": {"y": repaired}}


@pytest.mark.parametrize("schema", UNCHANGED)
def test_other_schemas_are_unchanged(schema):
    assert schema_repair.repair(schema) == schema


@pytest.mark.parametrize(("schema", "repaired"), MALFORMED)
def test_repaired_schema_can_be_enforced(schema, repaired):
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(repaired)))


RESTRICTS_NOTHING = [
    {"type": "string", "format": "uri-reference"},
    {"type": "string", "format": "password"},
    {"type": "string", "format": ""},
    {"type": "string", "format": 5},
    {"type": "array", "uniqueItems": False},
    {"type": "object", "propertyNames": {"type": "string"}},
    {"type": "object", "propertyNames": {"type": ["string", "null"], "description": "a key"}},
    {"type": "object", "propertyNames": {"format": "x"}},
    {"type": "object", "propertyNames": True},
    {"type": "object", "dependentRequired": {}, "dependentSchemas": {}, "dependencies": {}},
    {"type": "array", "minContains": 1, "maxContains": 2},
    {"type": "array", "contains": {"type": "integer"}, "minContains": 0},
    {"type": "object", "then": {"required": ["a"]}, "else": False},
    {"type": "object", "if": {"required": ["a"]}},
    {"type": "object", "not": False},
    {"type": "object", "unevaluatedProperties": True},
    {"type": "array", "unevaluatedItems": {}},
    {"type": "object", "$dynamicAnchor": "node", "$recursiveAnchor": True},
]


@pytest.mark.parametrize("schema", RESTRICTS_NOTHING)
def test_keyword_that_restricts_nothing_is_removed_and_needs_no_check(schema):
    tool = Tool(name="f", parameters={"type": "object", "properties": {"x": schema}})
    result = grammar.build_grammar(RequiredToolCalls(names=["f"]), [tool], allow_leading_newlines=False)

    assert schema_repair.without_redundant_keywords(schema) == {"type": schema["type"]}
    assert result.check is None


@pytest.mark.parametrize("name", ["date-time", "email", "uuid", "uri"])
def test_known_format_is_enforced(name):
    schema = {"type": "string", "format": name}
    assert schema_repair.relax(schema) == schema


@pytest.mark.parametrize(
    ("names", "allowed", "forbidden"),
    [({"pattern": "^x"}, "xa", "ax"), ({"enum": ["a", "b"]}, "b", "c")],
)
def test_names_of_properties_are_restricted_by_other_keywords(names, allowed, forbidden):
    relaxed = schema_repair.relax(
        {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    )
    validator = jsonschema.Draft202012Validator(relaxed)

    assert "propertyNames" not in relaxed
    assert validator.is_valid({allowed: 1})
    assert not validator.is_valid({forbidden: 1})
    assert not validator.is_valid({allowed: "text"})


NAME = {"properties": {"name": {"type": "string"}}}
CLOSED = {**NAME, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (NAME, CLOSED),
        ({"items": NAME, "$defs": {"x": NAME}}, {"items": CLOSED, "$defs": {"x": CLOSED}}),
        ({"anyOf": [NAME, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$defs": {"x": NAME}, "properties": {"a": {"title": "A", "$ref": "#/$defs/x"}}},
            {
                "$defs": {"x": CLOSED},
                "properties": {"a": {"title": "A", "$ref": "#/$defs/x"}},
                "additionalProperties": False,
            },
        ),
        ({**NAME, "properties": {"a": {"oneOf": [NAME, {}]}}}, {**CLOSED, "properties": {"a": {"oneOf": [NAME, {}]}}}),
    ],
)
def test_object_has_the_listed_properties_only(schema, closed):
    assert schema_repair.close_objects(schema) == closed


@pytest.mark.parametrize(
    "schema",
    [
        {**NAME, "additionalProperties": True},
        {**NAME, "additionalProperties": {"type": "integer"}},
        {**NAME, "patternProperties": {"^x": {}}},
        {**NAME, "required": ["other"]},
        {**NAME, "minProperties": 2},
        {**NAME, "required": [{}]},
        {"properties": {}},
        {"type": "object"},
        {"allOf": [NAME, {"properties": {"age": {"type": "integer"}}}]},
        {**NAME, "anyOf": [{"required": ["name"]}, {"required": ["age"]}]},
        {"items": {"oneOf": [NAME, {"properties": {"age": {}}}]}},
        {"items": {"not": NAME}},
        {"$defs": {"x": NAME}, "items": {"$ref": "#/$defs/x", "required": ["age"]}},
    ],
)
def test_object_stays_open_if_its_schema_mentions_other_properties_or_is_combined(schema):
    assert schema_repair.close_objects(schema) == schema


def test_properties_with_the_name_of_a_keyword_are_kept():
    schema = {"type": "object", "properties": {"not": {"type": "string"}, "format": {}, "uniqueItems": {}, "if": {}}}
    assert schema_repair.relax(schema) == schema


def test_deep_schemas_need_no_recursion():
    schema = {"type": "integer"}
    for _ in range(450):
        schema = {"type": "array", "items": schema, "uniqueItems": True}

    assert "uniqueItems" not in json.dumps(schema_repair.relax(schema_repair.repair(schema)))
