"""What a request may have at most: refused by the path of the field, with the limit and its key."""

import msgspec
import pytest

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai import limits
from osaurusd.protocols.openai.limits import Limits
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from tests.osaurusd.protocols.openai.translate.asking import TALK, nested, tool

SMALL = Input(
    max_messages=2,
    max_parts=2,
    max_tool_calls=1,
    max_name_length=5,
    max_stop_strings=2,
    max_stop_length=3,
    max_tools=2,
    max_schema_bytes=60,
    max_schema_depth=3,
    max_choices=2,
    max_top_logprobs=2,
    max_logit_bias=1,
    max_prompts=2,
)
LONG = "x" * 6
PART = {"type": "text", "text": "a"}


def chat(**fields):
    request = decode_json(msgspec.json.encode({"messages": TALK, **fields}), ChatRequest)
    Limits(SMALL).chat(request)


def completion(**fields):
    Limits(SMALL).completion(decode_json(msgspec.json.encode(fields), CompletionRequest))


def calls(**fields):
    return [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}, **fields}]}]


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


TOO_MUCH = [
    (chat, {"messages": TALK * 3}, "messages", "max_messages"),
    (chat, {"messages": [{"role": "user", "content": [PART] * 3}]}, "messages[0].content", "max_parts"),
    (chat, {"messages": [*TALK, {"role": "user", "content": "", "name": LONG}]}, "messages[1].name", "max_name_length"),
    (
        chat,
        {"messages": [{"role": "tool", "content": "", "tool_call_id": LONG}]},
        "messages[0].tool_call_id",
        "max_name_length",
    ),
    (chat, {"messages": [{**calls()[0], "tool_calls": calls()[0]["tool_calls"] * 2}]}, "messages[0].tool_calls", None),
    (chat, {"messages": calls(id=LONG)}, "messages[0].tool_calls[0].id", "max_name_length"),
    (
        chat,
        {"messages": calls(function={"name": LONG, "arguments": ""})},
        "messages[0].tool_calls[0].function.name",
        "max_name_length",
    ),
    (chat, {"model": LONG}, "model", "max_name_length"),
    (chat, {"n": 3}, "n", "max_choices"),
    (chat, {"n": 2**31 - 1}, "n", "max_choices"),
    (chat, {"stop": "abcd"}, "stop", "max_stop_length"),
    (chat, {"stop": ["a", "abcd"]}, "stop[1]", "max_stop_length"),
    (chat, {"stop": ["a"] * 3}, "stop", "max_stop_strings"),
    (chat, {"logit_bias": {"1": 1, "2": 1}}, "logit_bias", "max_logit_bias"),
    (chat, {"logprobs": True, "top_logprobs": 3}, "top_logprobs", "max_top_logprobs"),
    (chat, {"tools": [tool(name) for name in "abc"]}, "tools", "max_tools"),
    (chat, {"tools": [tool(parameters=nested(4))]}, "tools[0].function.parameters", "max_schema_depth"),
    (chat, {"tools": [tool(parameters={"a": "x" * 60})]}, "tools[0].function.parameters", "max_schema_bytes"),
    (chat, {"tools": [tool(name, parameters={"a": "x" * 30}) for name in "ab"]}, "tools", "max_schema_bytes"),
    (chat, {"response_format": form(nested(4))}, "response_format.json_schema.schema", "max_schema_depth"),
    (chat, {"response_format": form({"a": "x" * 60})}, "response_format.json_schema.schema", "max_schema_bytes"),
    (chat, {"chat_template_kwargs": nested(4)}, "chat_template_kwargs", "max_schema_depth"),
    (chat, {"chat_template_kwargs": {"a": ["x"] * 60}}, "chat_template_kwargs", "max_schema_bytes"),
    (completion, {"prompt": ["a"] * 3}, "prompt", "max_prompts"),
    (completion, {"prompt": [[1]] * 3}, "prompt", "max_prompts"),
    (completion, {"logprobs": 3}, "logprobs", "max_top_logprobs"),
    (completion, {"n": 3}, "n", "max_choices"),
]


@pytest.mark.parametrize(("check", "fields", "param", "key"), TOO_MUCH)
def test_more_than_may_be_is_refused_with_the_limit_and_its_key(check, fields, param, key):
    with pytest.raises(InvalidRequest) as refusal:
        check(**fields)
    key = key or "max_tool_calls"
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: at most {getattr(SMALL, key)} {limits.UNITS[key]}, not ")
    assert refusal.value.message.endswith(f"(`input.{key}`)")


def test_every_limit_of_fields_is_enforced():
    assert set(Input.__struct_fields__) == {key or "max_tool_calls" for *_, key in TOO_MUCH}


@pytest.mark.parametrize(
    ("check", "fields"),
    [
        (chat, {"messages": TALK * 2}),
        (chat, {"n": 2, "stop": ["abc", "a"], "logit_bias": {"1": 1}, "model": "x" * 5}),
        (chat, {"tools": [tool(name, parameters=nested(3)) for name in "ab"]}),
        (completion, {"prompt": list(range(100))}),
        (completion, {"prompt": ["a", "b"]}),
        (completion, {"prompt": []}),
    ],
)
def test_just_so_much_may_be(check, fields):
    check(**fields)
