"""The fields that chats and legacy completions have in common."""

import msgspec
import pytest

from osaurusd.errors import InvalidJson, InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.schema.base import Request
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest

FIELDS = sorted(Request.__struct_fields__)


def decode(kind=CompletionRequest, **fields):
    needed = {"messages": [{"role": "user", "content": "Hello"}]} if kind is ChatRequest else {}
    return decode_json(msgspec.json.encode({**needed, **fields}), kind)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_every_field_may_be_null_or_left_out(kind):
    assert decode(kind) == decode(kind, **dict.fromkeys(FIELDS))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
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
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": 1}, "stop"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream_options": {"include_obfuscation": 1}}, "stream_options.include_obfuscation"),
        ({"model": 1}, "model"),
    ],
)
def test_what_is_wrong_or_out_of_range_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        decode(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize(
    "number",
    [b"1e400", b"-1e400", b"1" + b"0" * 400, b"1" + b"0" * 10_000],
    ids=["1e400", "-1e400", "401 digits", "10001 digits"],
)
@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "seed", "n"]
)
def test_numbers_beyond_all_bounds_are_refused_by_the_fields_name(field, number):
    with pytest.raises(InvalidRequest) as refusal:
        decode_json(b'{"%s":%s}' % (field.encode(), number), CompletionRequest)
    assert field == refusal.value.param


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_no_number_is_no_json(number):
    with pytest.raises(InvalidJson):
        decode_json(b'{"temperature":%s}' % number, CompletionRequest)


@pytest.mark.parametrize(
    "fields",
    [
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
    ],
)
def test_the_ends_of_each_range_are_in_it(fields):
    ((name, value),) = fields.items()
    assert value == getattr(decode(**fields), name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, False), ({}, False), ({"include_usage": None}, False), ({"include_usage": True}, True)],
)
def test_usage_in_streams_is_asked_for_in_so_many_words(options, expected):
    assert expected == decode(stream_options=options).include_usage
