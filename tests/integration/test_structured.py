"""Answers that are held to a form: tools that must be called, and JSON. The real daemon, worker and model."""

import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.conftest import SMOLLM

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
ASK_PERSON = [{"role": "user", "content": "Describe a person as JSON."}]


def ask(client: OpenAI, messages, **fields):
    return client.chat.completions.create(
        **{"model": SMOLLM, "messages": messages, "temperature": 0, "max_tokens": 120, **fields}
    )


def valid(call) -> bool:
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
    jsonschema.validate(json.loads(call.function.arguments), tools[call.function.name])
    return call.id.startswith("call_") and call.type == "function"


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_required_call_is_a_valid_one_whatever_the_model_would_like_to_say(client: OpenAI, temperature) -> None:
    reply = ask(
        client, ASK_WEATHER, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False,
        temperature=temperature, seed=1,
    )  # fmt: skip

    (choice,) = reply.choices
    assert "tool_calls" == choice.finish_reason
    assert choice.message.content is None
    assert [True] == [valid(call) for call in choice.message.tool_calls]


def test_a_named_function_is_the_one_that_is_called(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    reply = ask(client, ASK_WEATHER, tools=[WEATHER, TIME], tool_choice=named)

    (call,) = reply.choices[0].message.tool_calls
    assert ("get_time", "{}") == (call.function.name, "".join(call.function.arguments.split()))


def test_a_streamed_call_is_the_whole_call(client: OpenAI) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = ask(client, ASK_WEATHER, **fields).choices[0].message.tool_calls
    chunks = list(ask(client, ASK_WEATHER, stream=True, **fields))

    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert ("get_weather", "function") == (pieces[0].function.name, pieces[0].type)
    assert pieces[0].id.startswith("call_")
    assert {0} == {piece.index for piece in pieces}
    assert whole.function.arguments == "".join(piece.function.arguments or "" for piece in pieces)
    assert len(pieces) > 3
    assert "tool_calls" == chunks[-1].choices[0].finish_reason


def test_a_call_that_is_cut_off_is_told_as_length(client: OpenAI) -> None:
    reply = ask(client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=6)

    assert "length" == reply.choices[0].finish_reason


def test_what_a_tool_said_goes_to_the_model(client: OpenAI) -> None:
    call = ask(client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    turns = [
        *ASK_WEATHER,
        call.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.choices[0].message.tool_calls[0].id, "content": "heavy snow, minus 40"},
    ]

    with_result = ask(client, turns, tools=[WEATHER])
    without = ask(client, ASK_WEATHER, tools=[WEATHER])

    assert with_result.usage.prompt_tokens > without.usage.prompt_tokens + 10


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_json_that_a_schema_asks_for_is_what_it_accepts(client: OpenAI, temperature) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    reply = ask(client, ASK_PERSON, response_format=wanted, temperature=temperature, seed=3, n=3)

    for choice in reply.choices:
        assert "stop" == choice.finish_reason
        jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_a_json_object_is_one(client: OpenAI) -> None:
    reply = ask(client, ASK_PERSON, response_format={"type": "json_object"}, max_tokens=400, temperature=0.8, seed=2)

    assert isinstance(json.loads(reply.choices[0].message.content), dict) or reply.choices[0].finish_reason == "length"


def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, ASK_PERSON, response_format=wanted)

    assert "response_format" in (refusal.value.param or "")
    assert "invalid_request" == refusal.value.code


def test_constrained_seeded_and_free_requests_run_side_by_side_and_get_what_they_get_alone(client: OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    requests = [
        {"messages": ASK_PERSON, "response_format": wanted},
        {"messages": ASK_WEATHER, "max_tokens": 20},
        {"messages": ASK_WEATHER, "temperature": 1.4, "seed": 9, "max_tokens": 20},
        {"messages": ASK_WEATHER, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
    ]

    def said(fields):
        message = ask(client, **fields).choices[0].message
        return message.content, [call.function.arguments for call in message.tool_calls or []]

    alone = [said(fields) for fields in requests]
    with ThreadPoolExecutor(len(requests)) as executor:
        together = list(executor.map(said, requests))

    assert alone == together
