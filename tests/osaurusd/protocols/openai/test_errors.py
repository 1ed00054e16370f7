"""Errors name the field at fault, under the name that the client used."""

import json

import pytest

from osaurusd.config import Input
from osaurusd.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from osaurusd.inference import limits
from osaurusd.protocols.openai import chat, completions
from osaurusd.protocols.openai.decisions import DECISION_PATHS
from osaurusd.protocols.openai.embeddings import EMBEDDING_PATHS
from osaurusd.protocols.openai.rerank import RERANK_PATHS
from tests.osaurusd.inference.builders import nested
from tests.osaurusd.inference.test_limits import SMALL

from .builders import MESSAGES, check_chat, check_completion, decode_chat, decode_completion, tool

LONG = "x" * 6
PART = {"type": "text", "text": "a"}
LARGE = {"a": "x" * 60}


def calls(**fields):
    return [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}, **fields}]}]


def allow_tools(*names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "location", "param"),
    [
        ({}, ("prompt",), "messages"),
        ({}, ("prompt", "messages"), "messages"),
        ({}, ("prompt", "messages", 3), "messages[3]"),
        ({}, ("prompt", "messages", 3, "content", 1), "messages[3].content[1]"),
        ({}, ("prompt", "messages", 3, "tool_calls", 0), "messages[3].tool_calls[0]"),
        ({}, ("prompt", "messages", 3, "tool_calls", 0, "arguments"), "messages[3].tool_calls[0].function.arguments"),
        ({}, ("prompt", "tools"), "tools"),
        ({}, ("prompt", "tools", 2), "tools[2].function.parameters"),
        (
            {"tools": [tool("f"), tool("g"), tool("h")], "tool_choice": allow_tools("g", "h")},
            ("prompt", "tools", 1),
            "tools[2].function.parameters",
        ),
        ({}, ("prompt", "tools", 0, "parameters"), "tools[0].function.parameters"),
        ({}, ("prompt", "template_variables", "tokenize"), "chat_template_kwargs.tokenize"),
        ({}, ("sampling", "logit_bias"), "logit_bias"),
        ({}, ("sampling", "temperature"), "temperature"),
        ({}, ("logprobs",), "top_logprobs"),
        ({}, ("model",), "model"),
        ({}, ("max_tokens",), "max_tokens"),
        ({"max_tokens": 5}, ("max_tokens",), "max_tokens"),
        ({"max_completion_tokens": 5}, ("max_tokens",), "max_completion_tokens"),
        ({"response_format": {"type": "json_object"}}, ("constraint",), "response_format"),
        ({"response_format": json_schema({})}, ("constraint", "schema"), "response_format.json_schema.schema"),
        ({"tools": [tool()], "tool_choice": "required"}, ("constraint",), "tool_choice"),
        ({"stop": "a"}, ("stop", 0), "stop"),
        ({"stop": ["a"]}, ("stop", 0), "stop[0]"),
    ],
)
def test_location_in_a_chat_is_mapped_to_the_field(fields, location, param):
    error = chat.field_paths(decode_chat(**fields)).name_field(InvalidRequest("wrong", location=location))
    assert (error.param, error.message) == (param, f"`{param}`: wrong")


@pytest.mark.parametrize(
    ("fields", "location", "prompt_index", "param"),
    [
        ({"prompt": "a"}, ("prompt",), None, "prompt"),
        ({"prompt": [1, 2]}, ("prompt", "tokens"), None, "prompt"),
        ({"prompt": ["a"]}, ("prompt",), None, "prompt[0]"),
        ({"prompt": ["a", "b", "c", "d"]}, ("prompt",), 3, "prompt[3]"),
        ({"prompt": [[1], [2]]}, ("prompt", "tokens"), 1, "prompt[1]"),
        ({"prompt": ["a", "b"], "suffix": "z"}, ("prompt", "suffix"), 1, "suffix"),
        ({}, ("max_tokens",), None, "max_tokens"),
        ({}, ("logprobs",), None, "logprobs"),
        ({}, ("sampling", "logit_bias"), 1, "logit_bias"),
    ],
)
def test_location_in_a_completion_is_mapped_to_the_field(fields, location, prompt_index, param):
    error = InvalidRequest("wrong", location=location)
    error.prompt_index = prompt_index
    named = completions.field_paths(decode_completion(**fields)).name_field(error)
    assert (named.param, named.message) == (param, f"`{param}`: wrong")


def test_named_error_keeps_its_code():
    paths = chat.field_paths(decode_chat())
    with pytest.raises(ContextLengthExceeded, match=r"^`messages`: too long$"), paths.named():
        raise ContextLengthExceeded("too long", location=("prompt",))


@pytest.mark.parametrize("location", [None, ("unknown",)])
def test_error_without_a_field_stays_unchanged(location):
    paths = chat.field_paths(decode_chat())
    error = QueueFull("full", location=location)
    with pytest.raises(QueueFull) as raised, paths.named():
        raise error
    assert raised.value is error


def test_error_event_has_the_envelope_and_the_field():
    error = ContextLengthExceeded("too long", location=("prompt",))
    assert json.loads(chat.field_paths(decode_chat()).error_event(error)) == {
        "error": {
            "message": "`messages`: too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }


@pytest.mark.parametrize(
    ("check", "fields", "param", "key"),
    [
        (check_chat, {"messages": MESSAGES * 3}, "messages", "max_messages"),
        (check_chat, {"messages": [{"role": "user", "content": [PART] * 3}]}, "messages[0].content", "max_parts"),
        (
            check_chat,
            {"messages": [*MESSAGES, {"role": "user", "content": "", "name": LONG}]},
            "messages[1].name",
            "max_name_length",
        ),
        (
            check_chat,
            {"messages": [{"role": "tool", "content": "", "tool_call_id": LONG}]},
            "messages[0].tool_call_id",
            "max_name_length",
        ),
        (
            check_chat,
            {"messages": [{"role": "tool", "content": [PART] * 3, "tool_call_id": "c"}]},
            "messages[0].content",
            "max_parts",
        ),
        (
            check_chat,
            {"messages": [{**calls()[0], "tool_calls": calls()[0]["tool_calls"] * 2}]},
            "messages[0].tool_calls",
            "max_tool_calls",
        ),
        (check_chat, {"messages": calls(id=LONG)}, "messages[0].tool_calls[0].id", "max_name_length"),
        (
            check_chat,
            {"messages": calls(function={"name": LONG, "arguments": ""})},
            "messages[0].tool_calls[0].function.name",
            "max_name_length",
        ),
        (check_chat, {"n": 2**31 - 1}, "n", "max_choices"),
        (check_chat, {"stop": "abcd"}, "stop", "max_stop_length"),
        (check_chat, {"stop": ["a", "abcd"]}, "stop[1]", "max_stop_length"),
        (check_chat, {"stop": ["a"] * 3}, "stop", "max_stop_strings"),
        (check_chat, {"logit_bias": {"1": 1, "2": 1}}, "logit_bias", "max_logit_bias"),
        (check_chat, {"logprobs": True, "top_logprobs": 3}, "top_logprobs", "max_top_logprobs"),
        (check_chat, {"tools": [tool(name) for name in "abc"]}, "tools", "max_tools"),
        (
            check_chat,
            {"tools": [tool(parameters=nested(4))]},
            "tools[0].function.parameters",
            "max_schema_depth",
        ),
        (
            check_chat,
            {"tools": [tool("f"), tool("g", parameters=nested(4))], "tool_choice": allow_tools("g")},
            "tools[1].function.parameters",
            "max_schema_depth",
        ),
        (check_chat, {"tools": [tool(parameters=LARGE)]}, "tools", "max_schema_bytes"),
        (
            check_chat,
            {"response_format": json_schema(nested(4))},
            "response_format.json_schema.schema",
            "max_schema_depth",
        ),
        (check_chat, {"guided_json": nested(4)}, "guided_json", "max_schema_depth"),
        (check_chat, {"format": nested(4), "response_format": {"type": "text"}}, "format", "max_schema_depth"),
        (
            check_chat,
            {"response_format": {"type": "json_object", "schema": nested(4)}},
            "response_format.schema",
            "max_schema_depth",
        ),
        (check_completion, {"json_schema": LARGE}, "json_schema", "max_schema_bytes"),
        (check_completion, {"guided_choice": ["x" * 200]}, "guided_choice", "max_schema_bytes"),
        (check_chat, {"stop": ["", "a", "abcd"]}, "stop[2]", "max_stop_length"),
        (check_chat, {"response_format": json_schema(LARGE)}, "response_format.json_schema.schema", "max_schema_bytes"),
        (check_chat, {"chat_template_kwargs": nested(4)}, "chat_template_kwargs", "max_schema_depth"),
        (check_chat, {"chat_template_kwargs": LARGE}, "chat_template_kwargs", "max_schema_bytes"),
        (check_completion, {"logprobs": 3}, "logprobs", "max_top_logprobs"),
        (check_completion, {"n": 3}, "n", "max_choices"),
        (check_completion, {"stop": ["a", "abcd"]}, "stop[1]", "max_stop_length"),
    ],
)
def test_exceeded_limit_names_the_field_and_the_key(check, fields, param, key):
    with pytest.raises(InvalidRequest) as raised:
        check(SMALL, **fields)
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: at most {getattr(SMALL, key)} ")
    assert raised.value.message.endswith(f"(`input.{key}`)")


def test_every_limit_has_a_field_in_one_of_the_endpoints():
    covered = {*chat.CHAT_PATHS, *completions.COMPLETION_PATHS, *EMBEDDING_PATHS, *RERANK_PATHS}
    # The content of a tool message is one field with the content of other messages.
    missing = {limit.location for limit in limits.LIMITS} - covered - set(DECISION_PATHS)
    assert missing == {(*limits.TOOL_RESULT, "content")}


def test_deeply_nested_values_are_accepted_up_to_the_limit():
    check_chat(Input(), chat_template_kwargs=nested(100), tools=[tool(parameters=nested(100))])
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        check_chat(Input(), chat_template_kwargs=nested(101))
