"""Request bodies are decoded into types that know every field of OpenAI's API."""

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from osaurusd.errors import InvalidJson, InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.chat_types import NO_OP_VALUES, ChatRequest
from osaurusd.protocols.openai.common import RequestBody
from osaurusd.protocols.openai.completion_types import CompletionRequest

from .builders import MESSAGES, decode_chat, decode_completion

# Fields for OpenAI's accounts and billing, and hints that cannot make a response wrong. They are ignored.
IGNORED = {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}


def openai_fields(params):
    fields = set(params.__annotations__)
    for base in params.__orig_bases__:
        fields |= set(getattr(base, "__annotations__", ()))
    return fields


def function(**fields):
    return [{"type": "function", "function": {"name": "f", **fields}}]


def call(**fields):
    return [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}, **fields}]}]


def test_every_field_of_openais_chats_is_known():
    fields = openai_fields(chat_create_params.CompletionCreateParamsStreaming)
    assert {"messages", "stream", "tools"} <= fields
    assert fields - set(ChatRequest.__struct_fields__) <= IGNORED


def test_every_field_of_openais_completions_is_known():
    fields = openai_fields(completion_create_params.CompletionCreateParamsStreaming)
    assert {"prompt", "stream", "echo"} <= fields
    assert fields - set(CompletionRequest.__struct_fields__) == {"user"}


def test_unsupported_fields_are_decoded():
    assert set(NO_OP_VALUES) <= set(ChatRequest.__struct_fields__)


def test_null_is_the_default_of_every_optional_field():
    optional = set(ChatRequest.__struct_fields__) - {"messages"}
    assert decode_chat(**dict.fromkeys(optional)) == decode_chat()
    assert decode_completion(**dict.fromkeys(CompletionRequest.__struct_fields__)) == decode_completion()


@pytest.mark.parametrize("field", sorted(IGNORED | {"num_ctx", "keep_alive"}))
@pytest.mark.parametrize("value", [None, 1, "x", [1], {"a": 1}])
def test_other_fields_are_ignored(field, value):
    assert decode_chat(**{field: value}) == decode_chat()


def test_other_fields_are_ignored_at_every_depth():
    part = {"type": "text", "text": "a", "cache_control": {}}
    plain = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert decode_chat(messages=[{**plain, "content": [part], "annotations": []}]) == decode_chat(messages=[plain])
    assert decode_chat(tools=function(cache_control={})) == decode_chat(tools=function())


INVALID_COMMON_FIELDS = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**30}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 10.1}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"logit_bias": {"1": 100.1}}, "logit_bias[...]"),
    ({"logit_bias": {"1": -100.1}}, "logit_bias[...]"),
    ({"logit_bias": {"1": "5"}}, "logit_bias[...]"),
    ({"logit_bias": [[1, 5]]}, "logit_bias"),
    ({"n": 0}, "n"),
    ({"n": 10**30}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop": 1}, "stop"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"include_obfuscation": 1}}, "stream_options.include_obfuscation"),
    ({"model": 1}, "model"),
]
INVALID_CHAT_FIELDS = [
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2**53 + 1}, "max_tokens"),
    ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"reasoning_effort": 1}, "reasoning_effort"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": ["Hello"]}, "messages[0]"),
    ({"messages": [*MESSAGES, {"content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "messages[0].name"),
    ({"messages": call(id=1)}, "messages[0].tool_calls[0].id"),
    ({"messages": call(function={"arguments": "{}"})}, "messages[0].tool_calls[0].function.name"),
    ({"messages": call(function={"name": "f", "arguments": [1]})}, "messages[0].tool_calls[0].function.arguments"),
    ({"tools": {}}, "tools"),
    ({"tools": function(parameters=[1])}, "tools[0].function.parameters"),
    ({"tools": function(parameters=True)}, "tools[0].function.parameters"),
    ({"tools": function(strict="yes")}, "tools[0].function.strict"),
    ({"tool_choice": []}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.mode"),
    ({"response_format": "text"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": True}}},
        "response_format.json_schema.schema",
    ),
]
INVALID_COMPLETION_FIELDS = [
    ({"prompt": 1}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [1, 2**31]}, "prompt[1]"),
    ({"prompt": [10**30]}, "prompt[0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": ["a", None]}, "prompt[1]"),
    ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
    ({"prompt": [[1, [2]]]}, "prompt[0][1]"),
    ({"suffix": 1}, "suffix"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 2**53 + 1}, "max_tokens"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"best_of": "1"}, "best_of"),
]


@pytest.mark.parametrize(
    ("decode", "fields", "param"),
    [
        *((decode_completion, *case) for case in INVALID_COMMON_FIELDS),
        *((decode_chat, *case) for case in INVALID_CHAT_FIELDS),
        *((decode_completion, *case) for case in INVALID_COMPLETION_FIELDS),
    ],
)
def test_invalid_field_is_named(decode, fields, param):
    with pytest.raises(InvalidRequest) as raised:
        decode(**fields)
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: ")


def test_missing_messages_are_rejected():
    with pytest.raises(InvalidRequest) as raised:
        decode_json(b'{"model":"m"}', ChatRequest)
    assert (raised.value.param, raised.value.message) == ("messages", "`messages`: is required")


@pytest.mark.parametrize(
    "number",
    [b"1e400", b"-1e400", b"1" + b"0" * 400, b"1" + b"0" * 10_000],
    ids=["1e400", "-1e400", "401 digits", "10001 digits"],
)
@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "seed", "n"]
)
def test_huge_number_is_rejected_by_field(field, number):
    with pytest.raises(InvalidRequest) as raised:
        decode_json(b'{"%s":%s}' % (field.encode(), number), CompletionRequest)
    assert raised.value.param == field


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_non_finite_number_is_not_json(number):
    with pytest.raises(InvalidJson):
        decode_json(b'{"temperature":%s}' % number, CompletionRequest)


@pytest.mark.parametrize(
    ("decode", "fields"),
    [
        *(
            (decode_completion, fields)
            for fields in (
                {"temperature": 0},
                {"temperature": 2},
                {"top_p": 0},
                {"top_p": 1},
                {"top_k": -1},
                {"top_k": 2**31 - 1},
                {"min_p": 0},
                {"min_p": 1},
                {"repetition_penalty": 10},
                {"frequency_penalty": -2},
                {"presence_penalty": 2},
                {"logit_bias": {"0": -100, "1": 100}},
                {"n": 1},
                {"n": 8},
                {"seed": -(2**63)},
                {"seed": 2**63 - 1},
                {"stop": "x"},
                {"stop": []},
                {"prompt": [[1, 2], [3]]},
                {"prompt": [2**31 - 1]},
            )
        ),
        *(
            (decode_chat, fields)
            for fields in ({"max_tokens": 1}, {"max_tokens": 2**53}, {"top_logprobs": 0}, {"top_logprobs": 20})
        ),
    ],
)
def test_bounds_of_each_range_are_accepted(decode, fields):
    ((name, value),) = fields.items()
    assert getattr(decode(**fields), name) == value


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, False), ({}, False), ({"include_usage": None}, False), ({"include_usage": True}, True)],
)
def test_usage_of_a_stream_is_sent_only_on_request(options, expected):
    body: RequestBody = decode_completion(stream_options=options)
    assert body.include_usage == expected
