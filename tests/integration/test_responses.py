"""The Responses API with OpenAI's client, against a real daemon, worker and tiny model."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from websockets.exceptions import ConnectionClosed

from tests import daemons
from tests.conftest import SMOLLM
from tests.models import make_tiny

# ChatML that accepts one system message, at the beginning, as Qwen's template does.
STRICT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('system must be first') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 10}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS}
# OpenAI's client opens WebSockets in a way that the library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:connect.* must be used as a context manager:DeprecationWarning")

EVENT = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    is_large: bool


@pytest.fixture(scope="module")
def tiny(module_home: Path, tiny_tokenizer: Path) -> Iterator[OpenAI]:
    """The official client, connected to a daemon whose only model is tiny."""
    make_tiny(module_home / "models" / SMOLLM, tiny_tokenizer, template=STRICT_TEMPLATE)
    with daemons.running(module_home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def respond(client: OpenAI, input_, **fields):
    return client.responses.create(**{"model": SMOLLM, "input": input_, "max_output_tokens": 8, **fields})


def test_text_is_the_same_as_in_chat_completions(tiny: OpenAI) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    chat = tiny.chat.completions.create(model=SMOLLM, messages=messages, max_tokens=8, temperature=0)
    response = respond(tiny, "Hello", temperature=0)
    with tiny.responses.stream(model=SMOLLM, input="Hello", max_output_tokens=8, temperature=0) as stream:
        events = list(stream)
        streamed = events[-1].response

    assert chat.choices[0].message.content == response.output_text == streamed.output_text
    assert chat.usage.prompt_tokens == response.usage.input_tokens
    assert response.usage.output_tokens == streamed.usage.output_tokens
    assert list(range(len(events))) == [event.sequence_number for event in events]


def test_events_are_valid(tiny: OpenAI) -> None:
    with tiny.responses.with_streaming_response.create(
        model=SMOLLM, input="Hello", max_output_tokens=24, tools=[WEATHER], tool_choice="required", stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    events = [EVENT.validate_json(each) for each in data[:-1]]

    assert "[DONE]" == data[-1]
    assert names == [event.type for event in events]
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_call_and_its_output(tiny: OpenAI) -> None:
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "geo", "description": "", "tools": [WEATHER]}]
    choice = {"type": "function", "name": "weather", "namespace": "geo"}
    first = respond(tiny, "Weather in Rome?", tools=tools, extra_body={"tool_choice": choice}, max_output_tokens=64)

    (call,) = first.output
    assert ("function_call", "weather", "geo") == (call.type, call.name, call.namespace)
    assert {"city"} == set(json.loads(call.arguments))
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    continued = respond(tiny, [output], previous_response_id=first.id, tools=tools)
    whole = respond(tiny, [{"role": "user", "content": "Weather in Rome?"}, call, output], tools=tools)
    assert continued.output_text == whole.output_text
    assert continued.usage.input_tokens == whole.usage.input_tokens
    assert continued.usage.input_tokens_details.cached_tokens


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [
        ("regex", r"[a-c]{2,5}\n", r"[a-c]{2,5}\n"),
        ("lark", 'start: LINE LINE?\nLINE: /[+-]"[a-c]{2,5}"/ "\\n"', r'([+-]"[a-c]{2,5}"\n){1,2}'),
    ],
)
def test_grammar_of_a_custom_tool_is_guaranteed(tiny: OpenAI, syntax: str, definition: str, pattern: str) -> None:
    tool = {
        "type": "custom",
        "name": "patch",
        "format": {"type": "grammar", "syntax": syntax, "definition": definition},
    }
    fields = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 64}
    response = respond(tiny, "Patch it.", **fields)

    (call,) = response.output
    assert ("custom_tool_call", "patch") == (call.type, call.name)
    assert re.fullmatch(pattern, call.input)
    tool["format"]["definition"] = "(("
    with pytest.raises(BadRequestError) as caught:
        respond(tiny, "Patch it.", **fields)
    assert "tools[0].format.definition" == caught.value.param


def test_format_is_guaranteed(tiny: OpenAI) -> None:
    response = tiny.responses.parse(model=SMOLLM, input="Is Rome large?", text_format=City)
    assert isinstance(response.output_parsed, City)


def test_templates_with_one_system_message_are_served(tiny: OpenAI) -> None:
    items = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert respond(tiny, items, instructions="Be brief.").output_text


def test_tokens_are_counted(tiny: OpenAI) -> None:
    counted = tiny.responses.input_tokens.count(model=SMOLLM, input="Hello")
    assert respond(tiny, "Hello").usage.input_tokens == counted.input_tokens


def test_incomplete_and_background(tiny: OpenAI) -> None:
    response = respond(tiny, "Hello", background=True)
    events = list(tiny.responses.retrieve(response.id, stream=True))
    final = tiny.responses.retrieve(response.id)

    assert final.status == events[-1].response.status
    assert final.output_text == respond(tiny, "Hello").output_text
    assert final.status == tiny.responses.cancel(response.id).status
    tiny.responses.delete(response.id)
    with pytest.raises(NotFoundError):
        tiny.responses.retrieve(response.id)
    if final.status == "incomplete":
        assert "max_output_tokens" == final.incomplete_details.reason


def final_response(connection):
    """Return the response at the end of its events."""
    for event in connection:
        assert event.type != "error", event
        if event.type in ("response.completed", "response.incomplete", "response.failed"):
            return event.response
    raise AssertionError("the connection was closed")


def test_websocket_continues_without_storing(tiny: OpenAI) -> None:
    first = respond(tiny, "Hello", temperature=0)
    expected = respond(tiny, "Why?", previous_response_id=first.id, temperature=0)
    fields = {"model": SMOLLM, "max_output_tokens": 8, "temperature": 0, "store": False}
    with tiny.responses.connect() as connection:
        connection.response.create(input="Hello", **fields)
        response = final_response(connection)
        connection.response.create(input="Why?", previous_response_id=response.id, **fields)
        continued = final_response(connection)

    assert first.output_text == response.output_text
    assert (expected.output_text, expected.usage.input_tokens) == (continued.output_text, continued.usage.input_tokens)
    assert continued.usage.input_tokens_details.cached_tokens
    with pytest.raises(NotFoundError):
        tiny.responses.retrieve(continued.id)


def test_prepared_prompt_is_cached(tiny: OpenAI) -> None:
    text = "A long prompt that no other test has. " * 20
    with tiny.responses.connect() as connection:
        connection.response.create(model=SMOLLM, input=text, generate=False, store=False)
        prepared = final_response(connection)
        connection.response.create(model=SMOLLM, input="Why?", previous_response_id=prepared.id, max_output_tokens=2)
        response = final_response(connection)

    assert ([], 0) == (prepared.output, prepared.usage.output_tokens)
    assert response.usage.input_tokens_details.cached_tokens > prepared.usage.input_tokens / 2


def test_conversation_is_the_whole_prompt(tiny: OpenAI) -> None:
    conversation = tiny.conversations.create(items=[{"role": "user", "content": "Hello"}])
    first = respond(tiny, [], conversation=conversation.id, temperature=0)
    second = respond(tiny, "Why?", conversation=conversation.id, temperature=0)
    whole = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": "Why?"}]

    assert respond(tiny, whole, temperature=0).output_text == second.output_text
    items = tiny.conversations.items.list(conversation.id, order="asc").data
    assert ["user", "assistant", "user", "assistant"] == [item.role for item in items]


def test_daemon_stops_while_websockets_are_open(tiny_tokenizer: Path, home: Path) -> None:
    make_tiny(home / "models" / SMOLLM, tiny_tokenizer)
    (home / "config.toml").write_text("[server]\nshutdown_grace_seconds = 600\n")
    with daemons.running(home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        with client.responses.connect() as idle, client.responses.connect() as busy:
            idle.response.create(model=SMOLLM, input="Hello", max_output_tokens=2)
            final_response(idle)
            busy.response.create(model=SMOLLM, input="Hello", max_output_tokens=500)
            assert "response.created" == busy.recv().type
            daemon.process.send_signal(signal.SIGTERM)
            response = final_response(busy)
            assert 1001 == close_code(idle)
        assert 0 == daemon.stop()
    assert response.status in ("completed", "incomplete")


def close_code(connection) -> int:
    """Return the code with which the server closes a connection."""
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv()
    return caught.value.rcvd.code


def test_stored_responses_survive_a_restart(tiny_tokenizer: Path, home: Path) -> None:
    make_tiny(home / "models" / SMOLLM, tiny_tokenizer)
    (home / "config.toml").write_text('[responses]\nstore = "disk"\n')
    ids, conversation = [], None
    for _ in range(2):
        with daemons.running(home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
            response = respond(client, "Hello", previous_response_id=ids[-1] if ids else None)
            ids.append(response.id)
            items = client.responses.input_items.list(response.id, order="asc").data
            if conversation is None:
                conversation = client.conversations.create(metadata={"a": "b"})
            respond(client, "Hello", conversation=conversation.id)
            kept = client.conversations.items.list(conversation.id, order="asc").data
            assert conversation == client.conversations.retrieve(conversation.id)
    assert ids[0] == response.previous_response_id
    assert ["user", "assistant", "user"] == [item.role for item in items]
    assert ["user", "assistant"] * 2 == [item.role for item in kept]
