"""Which tools a model is told of, and whether it must call one."""

import pytest

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import RequiredToolCalls

from .asking import chat_order, nested, tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
F, G = tool("f", description="Does it.", parameters=SCHEMA), tool("g", parameters=SCHEMA)


def named(name, kind="function"):
    return {"type": kind, "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def calls(*names, parallel=True):
    return RequiredToolCalls(names=list(names), parallel=parallel)


def asked(choice=None, tools=(F, G), **fields):
    return chat_order(tools=list(tools), tool_choice=choice, **fields)


def test_without_tools_nothing_is_called():
    assert chat_order() == chat_order(tools=[], tool_choice="none") == chat_order(tool_choice="auto")
    assert not chat_order().call_tools


@pytest.mark.parametrize(
    ("choice", "shown", "constraint"),
    [
        (None, [F, G], None),
        ("auto", [F, G], None),
        ("none", [], None),
        ("required", [F, G], calls("f", "g")),
        (named("g"), [F, G], calls("g", parallel=False)),
        (allowed("auto", "g"), [G], None),
        (allowed("auto"), [], None),
        (allowed("required", "g", "f", "g"), [F, G], calls("f", "g")),
        (allowed("required", "g"), [G], calls("g")),
    ],
)
def test_the_choice_says_what_is_shown_and_what_must_be_called(choice, shown, constraint):
    order = asked(choice)
    assert (shown, constraint, bool(shown)) == (order.prompt.tools, order.constraint, order.call_tools)


@pytest.mark.parametrize(
    ("fields", "parallel"),
    [({}, True), ({"parallel_tool_calls": True}, True), ({"parallel_tool_calls": False}, False)],
)
def test_calls_are_parallel_unless_that_is_refused(fields, parallel):
    assert parallel == asked(**fields).parallel_calls
    assert calls("f", "g", parallel=parallel) == asked("required", **fields).constraint
    assert calls("g", parallel=parallel) == asked(allowed("required", "g"), **fields).constraint
    assert calls("g", parallel=False) == asked(named("g"), **fields).constraint


def test_a_tool_is_shown_with_what_models_were_trained_on():
    (shown,) = asked(tools=[tool("f", strict=True)]).prompt.tools
    assert tool("f", parameters={"type": "object", "properties": {}}) == shown


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, tool("f")]}, "tools[1].function.name"),
        ({"tools": [F, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [tool("f", parameters=nested(101))]}, "tools[0].function.parameters"),
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
def test_what_cannot_be_used_is_refused(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        asked(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1].type"),
        ({"choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice.type"),
    ],
)
def test_custom_tools_are_refused_by_name(fields, param):
    with pytest.raises(UnsupportedParameter) as refusal:
        asked(**fields)
    assert param == refusal.value.param
    assert "'custom'" in refusal.value.message


def test_parameters_may_be_nested_as_deeply_as_schemas_are():
    (shown,) = asked(tools=[tool("f", parameters=nested(100))]).prompt.tools
    assert nested(100) == shown["function"]["parameters"]
