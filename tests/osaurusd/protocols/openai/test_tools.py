"""`tools` and `tool_choice` determine which tools the model sees, and whether it must call one."""

import pytest

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import RequiredToolCalls, Tool

from .builders import parse_chat, tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
F, G = tool("f", description="Does it.", parameters=SCHEMA, strict=True), tool("g", parameters=SCHEMA)
NEUTRAL = {"f": Tool(name="f", description="Does it.", parameters=SCHEMA), "g": Tool(name="g", parameters=SCHEMA)}


def named(name, type_="function"):
    return {"type": type_, "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def required(*names, parallel=True):
    return RequiredToolCalls(names=list(names), parallel=parallel)


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
        (named("g"), "fg", required("g", parallel=False)),
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
    ("fields", "parallel"),
    [({}, True), ({"parallel_tool_calls": True}, True), ({"parallel_tool_calls": False}, False)],
)
def test_parallel_calls_are_allowed_unless_disabled(fields, parallel):
    assert parse(**fields).parallel_tool_calls == parallel
    assert parse("required", **fields).constraint == required("f", "g", parallel=parallel)
    assert parse(allowed("required", "g"), **fields).constraint == required("g", parallel=parallel)
    assert parse(named("g"), **fields).constraint == required("g", parallel=False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, tool("f")]}, "tools[1].function.name"),
        ({"tools": [F, {"type": "function"}]}, "tools[1].function"),
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
    with pytest.raises(UnsupportedParameter, match="'custom'") as raised:
        parse(**fields)
    assert raised.value.param == param
