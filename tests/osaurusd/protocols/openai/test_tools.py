"""`tools` and `tool_choice` determine which tools the model sees, and whether it must call one."""

import pytest

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import RequiredToolCalls, Tool
from tests.osaurusd.inference.builders import nested

from .builders import check_chat, parse_chat, tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
F, G = tool("f", description="Does it.", parameters=SCHEMA, strict=True), tool("g", parameters=SCHEMA)
NEUTRAL = {"f": Tool(name="f", description="Does it.", parameters=SCHEMA), "g": Tool(name="g", parameters=SCHEMA)}


def named(name, type_="function"):
    return {"type": type_, "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def required(*names, max_calls=4):
    return RequiredToolCalls(names=list(names), max_calls=max_calls)


def parse(choice=None, tools=(F, G), **fields):
    return parse_chat(tools=list(tools), tool_choice=choice, **fields)


def test_request_without_tools_has_no_tool_calls():
    assert parse_chat() == parse_chat(tools=[], tool_choice="none") == parse_chat(tool_choice="auto")
    assert not parse_chat().parse_tool_calls


@pytest.mark.parametrize(
    ("choice", "visible", "constraint"),
    [
        (None, "fg", None),
        ("auto", "fg", None),
        ("none", "", None),
        ("required", "fg", required("f", "g")),
        ("any", "fg", required("f", "g")),
        ({"type": "auto"}, "fg", None),
        ({"type": "none"}, "", None),
        ({"type": "any"}, "fg", required("f", "g")),
        ({"type": "required"}, "fg", required("f", "g")),
        (named("g"), "fg", required("g", max_calls=1)),
        ({"function": {"name": "g"}}, "fg", required("g", max_calls=1)),
        ({"type": "function", "name": "g"}, "fg", required("g", max_calls=1)),
        ({"type": "tool", "name": "g"}, "fg", required("g", max_calls=1)),
        ("g", "fg", required("g", max_calls=1)),
        ({"type": "allowed_tools", "mode": "any", "tools": [{"type": "function", "name": "g"}]}, "g", required("g")),
        (allowed("auto", "g"), "g", None),
        (allowed("auto"), "", None),
        (allowed("required", "g", "f", "g"), "fg", required("f", "g")),
        (allowed("required", "g"), "g", required("g")),
    ],
)
def test_tool_choice_determines_visible_tools_and_constraint(choice, visible, constraint):
    request = parse(choice)
    assert request.prompt.tools == [NEUTRAL[name] for name in visible]
    assert request.constraint == constraint
    assert request.parse_tool_calls == bool(visible)


@pytest.mark.parametrize(
    ("fields", "max_calls"),
    [({}, 4), ({"parallel_tool_calls": True}, 4), ({"parallel_tool_calls": False}, 1)],
)
def test_parallel_calls_are_allowed_unless_disabled(fields, max_calls):
    assert parse(**fields).parallel_tool_calls == (max_calls > 1)
    assert parse("required", **fields).constraint == required("f", "g", max_calls=max_calls)
    assert parse(allowed("required", "g"), **fields).constraint == required("g", max_calls=max_calls)
    assert parse(named("g"), **fields).constraint == required("g", max_calls=1)


@pytest.mark.parametrize(
    "tool_",
    [
        {"type": "function", "name": "f", "description": "Does it.", "parameters": SCHEMA},
        {"name": "f", "description": "Does it.", "parameters": SCHEMA},
        {"name": "f", "description": "Does it.", "input_schema": SCHEMA},
        {"type": "custom", "name": "f", "description": "Does it.", "input_schema": SCHEMA},
        {"function": {"name": "f", "description": "Does it.", "parameters": SCHEMA}},
    ],
)
def test_tools_in_the_forms_of_other_apis_are_understood(tool_):
    assert parse(tools=[tool_]).prompt.tools == [NEUTRAL["f"]]


@pytest.mark.parametrize("empty", [[], {}])
def test_empty_parameters_may_be_an_empty_list(empty):
    assert parse(tools=[tool("f", parameters=empty)]).prompt.tools == [Tool(name="f", parameters={})]


@pytest.mark.parametrize("name", ["server.tool", "a/b:c", "x" * 128])
def test_names_of_the_model_context_protocol_are_accepted(name):
    assert parse(named(name), tools=[tool(name)]).constraint == required(name, max_calls=1)


def test_error_of_a_flat_tool_names_its_field():
    deep = {"name": "d", "input_schema": {"properties": nested(200)}}
    with pytest.raises(InvalidRequest) as raised:
        check_chat(tools=[F, deep])
    assert raised.value.param == "tools[1].input_schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name"),
        ({"tools": [F, {"name": "x" * 129}]}, "tools[1].name"),
        ({"tools": [F, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [F, {"name": "f"}]}, "tools[1].name"),
        ({"choice": {"type": "function", "name": "h"}}, "tool_choice.name"),
        ({"choice": {}}, "tool_choice.function"),
        ({"tools": [], "choice": "required"}, "tool_choice"),
        ({"tools": [], "choice": named("f")}, "tool_choice"),
        ({"tools": [], "choice": allowed("auto", "f")}, "tool_choice"),
        ({"choice": "always"}, "tool_choice"),
        ({"choice": ""}, "tool_choice"),
        ({"choice": named("h")}, "tool_choice.function.name"),
        ({"choice": {"type": "function"}}, "tool_choice.function"),
        ({"choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"choice": allowed("always", "f")}, "tool_choice.allowed_tools.mode"),
        ({"choice": allowed("required")}, "tool_choice.allowed_tools.tools"),
        ({"choice": allowed("auto", "f", "h")}, "tool_choice.allowed_tools.tools[1].function.name"),
    ],
)
def test_invalid_tool_or_choice_is_rejected(fields, param):
    with pytest.raises(InvalidRequest) as raised:
        parse(**fields)
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1].type"),
        ({"choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice.type"),
    ],
)
def test_custom_tool_is_rejected_by_its_type(fields, param):
    with pytest.raises(UnsupportedParameter, match='"custom"') as raised:
        parse(**fields)
    assert raised.value.param == param
