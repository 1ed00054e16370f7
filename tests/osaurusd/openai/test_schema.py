"""The request type knows every field of OpenAI's, one way or the other."""

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from osaurusd.errors import InvalidRequest
from osaurusd.openai.schema import HARMLESS, ChatRequest, Unsupported
from osaurusd.web import body

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
    return body.decode(msgspec.json.encode({"messages": TALK, **fields}), ChatRequest)


def test_harmless_values_are_listed_for_exactly_the_unsupported_fields():
    assert sorted(HARMLESS) == sorted(Unsupported.__struct_fields__)


def test_every_field_of_openais_client_is_supported_refused_or_bookkeeping():
    theirs = set(CompletionCreateParamsStreaming.__annotations__)
    for base in CompletionCreateParamsStreaming.__orig_bases__:
        theirs |= set(getattr(base, "__annotations__", ()))
    assert {"messages", "stream", "tools"} <= theirs
    assert theirs - set(ChatRequest.__struct_fields__) - BOOKKEEPING == set()


@pytest.mark.parametrize("field", OPTIONAL)
def test_every_optional_field_may_be_null(field):
    assert getattr(decode(**{field: None}), field) is None


def test_all_optional_fields_may_be_null_or_left_out():
    assert decode(**dict.fromkeys(OPTIONAL)) == decode()


@pytest.mark.parametrize("field", sorted(BOOKKEEPING | {"top_k", "num_ctx", "keep_alive", "repetition_penalty"}))
@pytest.mark.parametrize("value", [None, 1, "x", [1], {"a": 1}])
def test_fields_outside_are_ignored(field, value):
    assert decode(**{field: value}) == decode()


def test_fields_outside_are_ignored_at_every_depth():
    body.decode(
        b'{"messages":[{"role":"user","name":"me","content":[{"type":"text","text":"a","cache_control":{}}]}],'
        b'"stream_options":{"include_obfuscation":false}}',
        ChatRequest,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": 1}, "stop"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"model": 1}, "model"),
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
    ],
)
def test_what_is_wrong_or_out_of_range_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        decode(**fields)
    assert type(refusal.value) is InvalidRequest
    assert refusal.value.param == param
    assert refusal.value.message.startswith(f"`{param}`: ")


def test_messages_are_required():
    with pytest.raises(InvalidRequest) as refusal:
        body.decode(b'{"model":"m"}', ChatRequest)
    assert (refusal.value.param, refusal.value.message) == ("messages", "`messages`: is required")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 0},
        {"top_p": 1},
        {"max_tokens": 1},
        {"max_tokens": 10**12},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": "x"},
        {"stop": []},
    ],
)
def test_the_ends_of_each_range_are_in_it(fields):
    ((name, value),) = fields.items()
    assert getattr(decode(**fields), name) == value
