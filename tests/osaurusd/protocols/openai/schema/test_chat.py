"""The request type knows every field of OpenAI's chats, one way or the other."""

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from osaurusd.errors import InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.schema.chat import HARMLESS, ChatRequest

TALK = [{"role": "user", "content": "Hello"}]
OPTIONAL = sorted(set(ChatRequest.__struct_fields__) - {"messages"})

# Fields that say who asks, or how OpenAI shall keep books: without bearing on the answer, and ignored.
BOOKKEEPING = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}


def decode(**fields):
    return decode_json(msgspec.json.encode({"messages": TALK, **fields}), ChatRequest)


def function(**fields):
    return [{"type": "function", "function": {"name": "f", **fields}}]


def call(**fields):
    return [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}, **fields}]}]


def test_every_field_of_openais_client_is_supported_refused_or_bookkeeping():
    theirs = set(CompletionCreateParamsStreaming.__annotations__)
    for base in CompletionCreateParamsStreaming.__orig_bases__:
        theirs |= set(getattr(base, "__annotations__", ()))
    assert {"messages", "stream", "tools"} <= theirs
    assert set() == theirs - set(ChatRequest.__struct_fields__) - BOOKKEEPING


def test_fields_that_are_refused_are_read():
    assert set(HARMLESS) <= set(ChatRequest.__struct_fields__)


def test_all_optional_fields_may_be_null_or_left_out():
    assert decode(**dict.fromkeys(OPTIONAL)) == decode()


@pytest.mark.parametrize("field", sorted(BOOKKEEPING | {"num_ctx", "keep_alive"}))
@pytest.mark.parametrize("value", [None, 1, "x", [1], {"a": 1}])
def test_fields_outside_are_ignored(field, value):
    assert decode(**{field: value}) == decode()


def test_fields_outside_are_ignored_at_every_depth():
    part = {"type": "text", "text": "a", "cache_control": {}}
    plain = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert decode(messages=[plain]) == decode(messages=[{**plain, "content": [part], "annotations": []}])
    assert decode(tools=function()) == decode(tools=function(cache_control={}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2**53 + 1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"reasoning_effort": 1}, "reasoning_effort"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [*TALK, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "messages[0].name"),
        ({"messages": call(id=1)}, "messages[0].tool_calls[0].id"),
        ({"messages": call(function={"name": "f"})}, "messages[0].tool_calls[0].function.arguments"),
        (
            {"messages": call(function={"name": "f", "arguments": {}})},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": {}}, "tools"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": function(name="")}, "tools[0].function.name"),
        ({"tools": function(name="a b")}, "tools[0].function.name"),
        ({"tools": function(name="f\n")}, "tools[0].function.name"),
        ({"tools": function(name="x" * 65)}, "tools[0].function.name"),
        ({"tools": function(parameters=[])}, "tools[0].function.parameters"),
        ({"tools": function(parameters=True)}, "tools[0].function.parameters"),
        ({"tools": function(strict="yes")}, "tools[0].function.strict"),
        ({"tool_choice": []}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.mode"),
        ({"response_format": "text"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": True}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_is_wrong_or_out_of_range_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        decode(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


def test_messages_are_required():
    with pytest.raises(InvalidRequest) as refusal:
        decode_json(b'{"model":"m"}', ChatRequest)
    assert ("messages", "`messages`: is required") == (refusal.value.param, refusal.value.message)


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 1}, {"max_tokens": 2**53}, {"top_logprobs": 0}, {"top_logprobs": 20}],
)
def test_the_ends_of_each_range_are_in_it(fields):
    ((name, value),) = fields.items()
    assert value == getattr(decode(**fields), name)
