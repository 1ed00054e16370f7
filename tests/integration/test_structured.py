"""Structured output: required tool calls and JSON schemas. A real daemon, worker and model."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import openai
import pytest
from openai import OpenAI

from osaurusd.config import Input
from tests import daemons
from tests.conftest import SMOLLM
from tests.models import make_tiny

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
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": NO_PARAMETERS}}
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
OPEN_PERSON = {key: value for key, value in PERSON.items() if key != "additionalProperties"}
WEATHER_MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
PERSON_MESSAGES = [{"role": "user", "content": "Describe a person as JSON."}]


@pytest.fixture(scope="module")
def tiny_client(module_home: Path, tiny_tokenizer: Path) -> Iterator[OpenAI]:
    """The official client, connected to a daemon whose default model is tiny and has random weights."""
    make_tiny(module_home / "models" / SMOLLM, tiny_tokenizer)
    with (
        daemons.running(module_home) as daemon,
        OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as openai_client,
    ):
        yield openai_client


def complete(client: OpenAI, messages, **fields):
    return client.chat.completions.create(
        **{"model": SMOLLM, "messages": messages, "temperature": 0, "max_tokens": 120, **fields}
    )


def is_valid(call) -> bool:
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
    jsonschema.validate(json.loads(call.function.arguments), tools[call.function.name])
    return call.id.startswith("call_") and call.type == "function"


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_required_tool_call_is_valid_at_any_temperature(tiny_client: OpenAI, temperature) -> None:
    reply = complete(
        tiny_client, WEATHER_MESSAGES, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False,
        temperature=temperature, seed=1,
    )  # fmt: skip

    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [True] == [is_valid(call) for call in choice.message.tool_calls]


def test_named_function_is_called(tiny_client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    reply = complete(tiny_client, WEATHER_MESSAGES, tools=[WEATHER, TIME], tool_choice=named, parallel_tool_calls=False)

    (call,) = reply.choices[0].message.tool_calls
    assert ("get_time", "{}") == (call.function.name, "".join(call.function.arguments.split()))


def test_streamed_tool_call_equals_the_whole_one(tiny_client: OpenAI) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = complete(tiny_client, WEATHER_MESSAGES, **fields).choices[0].message.tool_calls
    chunks = list(complete(tiny_client, WEATHER_MESSAGES, stream=True, **fields))

    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert ("get_weather", "function") == (pieces[0].function.name, pieces[0].type)
    assert pieces[0].id.startswith("call_")
    assert {0} == {piece.index for piece in pieces}
    assert whole.function.arguments == "".join(piece.function.arguments or "" for piece in pieces)
    assert len(pieces) > 3
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("temperature", [0, 1])
def test_required_tool_calls_end_and_differ(tiny_client: OpenAI, temperature) -> None:
    fields = {"tools": [WEATHER, TIME], "tool_choice": "required", "max_tokens": 300, "temperature": temperature}
    (choice,) = complete(tiny_client, WEATHER_MESSAGES, seed=4, **fields).choices

    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert choice.finish_reason == "tool_calls"
    assert 1 <= len(calls) <= Input().max_forced_calls
    assert all(call not in calls[:index] for index, call in enumerate(calls))


def test_truncated_tool_call_finishes_with_length(tiny_client: OpenAI) -> None:
    reply = complete(tiny_client, WEATHER_MESSAGES, tools=[WEATHER], tool_choice="required", max_tokens=6)

    assert reply.choices[0].finish_reason == "length"


def test_tool_result_is_part_of_the_prompt(tiny_client: OpenAI) -> None:
    call = complete(tiny_client, WEATHER_MESSAGES, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    messages = [
        *WEATHER_MESSAGES,
        call.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.choices[0].message.tool_calls[0].id, "content": "heavy snow, minus 40"},
    ]

    with_result = complete(tiny_client, messages, tools=[WEATHER], max_tokens=1)
    without = complete(tiny_client, WEATHER_MESSAGES, tools=[WEATHER], max_tokens=1)

    assert with_result.usage.prompt_tokens > without.usage.prompt_tokens + 10


@pytest.mark.parametrize(("temperature", "schema"), [(0, PERSON), (1.3, PERSON), (1.3, OPEN_PERSON)])
def test_output_conforms_to_the_json_schema_and_has_only_its_properties(
    tiny_client: OpenAI, temperature, schema
) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    reply = complete(
        tiny_client, PERSON_MESSAGES, response_format=response_format, temperature=temperature, seed=3, n=3
    )

    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_json_object_format_yields_an_object(tiny_client: OpenAI) -> None:
    reply = complete(
        tiny_client, PERSON_MESSAGES, response_format={"type": "json_object"}, max_tokens=60, temperature=0.8, seed=2
    )

    (choice,) = reply.choices
    assert choice.message.content.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_unsupported_schema_is_rejected_with_the_reason(tiny_client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as raised:
        complete(tiny_client, PERSON_MESSAGES, response_format=response_format)

    assert (raised.value.code, raised.value.param) == (
        "invalid_request",
        "response_format.json_schema.schema",
    )


def test_schema_is_part_of_the_prompt_unless_the_messages_describe_it(tiny_client: OpenAI) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    described = [{"role": "user", "content": 'Describe a person as JSON with "name", "age" and "colours".'}]

    def prompt_tokens(messages, **fields):
        return complete(tiny_client, messages, max_tokens=1, **fields).usage.prompt_tokens

    added = prompt_tokens(PERSON_MESSAGES, response_format=response_format) - prompt_tokens(PERSON_MESSAGES)
    assert added > 50
    assert prompt_tokens(described, response_format=response_format) == prompt_tokens(described)


def test_output_that_violates_what_cannot_be_enforced_is_not_returned(tiny_client: OpenAI) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="non-unique"):
        complete(tiny_client, PERSON_MESSAGES, extra_body={"guided_json": schema})


def test_one_unusual_tool_does_not_make_the_others_unusable(tiny_client: OpenAI) -> None:
    unusual = {"type": "object", "properties": {"tags": {"propertyNames": {"type": "string"}, "format": "tags"}}}
    tool = {"type": "function", "function": {"name": "tag", "parameters": unusual}}
    named = {"type": "function", "function": {"name": "get_weather"}}

    reply = complete(tiny_client, WEATHER_MESSAGES, tools=[tool, WEATHER], tool_choice=named)

    assert is_valid(reply.choices[0].message.tool_calls[0])


def test_output_is_one_of_the_choices(tiny_client: OpenAI) -> None:
    reply = complete(tiny_client, WEATHER_MESSAGES, extra_body={"guided_choice": ["sun", "rain"]})

    assert reply.choices[0].message.content in ("sun", "rain")
    assert reply.choices[0].finish_reason == "stop"


def test_unsupported_parameters_of_a_tool_are_rejected_with_their_path(tiny_client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "unsupported", "parameters": schema}}
    with pytest.raises(openai.BadRequestError) as raised:
        complete(tiny_client, WEATHER_MESSAGES, tools=[WEATHER, tool], tool_choice="required")

    assert (raised.value.code, raised.value.param) == ("invalid_request", "tools[1].function.parameters")


def test_batching_constrained_and_seeded_requests_does_not_change_their_output(tiny_client: OpenAI) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    requests = [
        {"messages": PERSON_MESSAGES, "response_format": response_format},
        {"messages": WEATHER_MESSAGES, "max_tokens": 20},
        {"messages": WEATHER_MESSAGES, "temperature": 1.4, "seed": 9, "max_tokens": 20},
        {"messages": WEATHER_MESSAGES, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
    ]

    def generate(fields):
        message = complete(tiny_client, **fields).choices[0].message
        return message.content, [call.function.arguments for call in message.tool_calls or []]

    alone = [generate(fields) for fields in requests]
    with ThreadPoolExecutor(len(requests)) as executor:
        batched = list(executor.map(generate, requests))

    assert alone == batched
