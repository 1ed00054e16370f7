"""Anthropic's API with its official client, against a real daemon, worker and tiny models."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai import OpenAI

from tests import daemons
from tests.daemons import Daemon, wait_until
from tests.models import REASONING_MARKERS, make_tiny, rename_tokens

CONTEXT = 16384
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "London"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"extra_body": {"temperature": 0}}  # the client has no argument for it
FORCED = {"type": "tool", "name": "get_weather"}


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon with two tiny random models, one of which thinks if the request asks for it."""
    make_tiny(module_home / "models" / "tiny", tiny_tokenizer, max_position_embeddings=CONTEXT)
    # With tied embeddings, a random model repeats the last token, which is a line break.
    folder = make_tiny(module_home / "models" / "thinker", tiny_tokenizer, tie_word_embeddings=False)
    rename_tokens(folder, REASONING_MARKERS)
    template = folder / "chat_template.jinja"
    opening = "{% if add_generation_prompt and enable_thinking %}{{ '<think>\\n' }}{% endif %}"
    template.write_text(template.read_text() + opening)
    with daemons.running(module_home) as running:
        yield running


@pytest.fixture(scope="module")
def claude(daemon: Daemon, anthropic: ModuleType) -> Iterator[Any]:
    """Anthropic's client."""
    with anthropic.Anthropic(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def create(client, messages=QUESTION, **fields):
    return client.messages.create(**{"model": "tiny", "max_tokens": 8, "messages": messages, **GREEDY, **fields})


def prompt_tokens(usage) -> int:
    return usage.input_tokens + usage.cache_read_input_tokens


def test_text_is_that_of_chat_completions(daemon: Daemon, claude) -> None:
    message = create(claude)
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as openai:
        chat = openai.chat.completions.create(model="tiny", max_tokens=8, messages=QUESTION, temperature=0)
    assert message.content[0].text == chat.choices[0].message.content
    assert (prompt_tokens(message.usage), message.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert (message.stop_reason, message.role) == ("max_tokens", "assistant")


def test_stream_assembles_to_the_same_message(claude) -> None:
    whole = create(claude)
    with claude.messages.stream(model="tiny", max_tokens=8, messages=QUESTION, **GREEDY) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 8)
    assert prompt_tokens(final.usage) == prompt_tokens(whole.usage)
    assert [names[0], *names[-3:]] == ["message_start", "content_block_stop", "message_delta", "message_stop"]


def test_stop_sequence_is_named(claude) -> None:
    text = create(claude, max_tokens=12).content[0].text
    stop = text[-3:]
    message = create(claude, max_tokens=12, stop_sequences=["never", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]


@pytest.mark.parametrize("stream", [False, True])
def test_forced_tool_use_and_its_result(claude, stream) -> None:
    fields = {"model": "tiny", "max_tokens": 60, "messages": QUESTION, "tools": [WEATHER], "tool_choice": FORCED}
    if stream:
        with claude.messages.stream(**fields) as events:
            message = events.get_final_message()
    else:
        message = claude.messages.create(**fields)
    (use,) = message.content
    assert (message.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "get_weather")
    assert use.input["city"] in ("Paris", "London")
    assert use.id.startswith("toolu_")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    history = [*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert create(claude, history, tools=[WEATHER]).usage.output_tokens == 8


def test_format_of_the_output_is_guaranteed(claude) -> None:
    message = create(
        claude, output_config={"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}, max_tokens=60
    )
    assert json.loads(message.content[0].text)["city"] in ("Paris", "London")


def test_thinking_is_returned_and_accepted(claude) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = create(claude, model="thinker", thinking=thinking)
    (block,) = message.content
    assert (block.type, message.stop_reason) == ("thinking", "max_tokens")
    assert block.thinking
    assert block.signature
    answer = {"role": "assistant", "content": [block, {"type": "text", "text": "Sunny."}]}
    again = create(claude, [*QUESTION, answer, *QUESTION], model="thinker", thinking={"type": "disabled"})
    assert [block.type for block in again.content] == ["text"]


def test_tokens_are_counted_as_in_the_message(claude) -> None:
    fields = {"model": "tiny", "messages": QUESTION, "system": "Be brief.", "tools": [WEATHER]}
    count = claude.messages.count_tokens(**fields).input_tokens
    assert count == prompt_tokens(claude.messages.create(**fields, max_tokens=1).usage)
    assert claude.beta.messages.count_tokens(**fields, betas=["token-counting-2024-11-01"]).input_tokens == count


def test_second_turn_reuses_the_conversation_although_the_billing_block_changes(claude) -> None:
    rules = f"{uuid.uuid4().hex} " + "Be brief and precise. " * 200

    def turn(number, messages):
        billing = f"x-anthropic-billing-header: cc_version=2.1.154; cc_entrypoint=cli; cch={number};"
        system = [{"type": "text", "text": text} for text in (billing, rules)]
        return create(claude, messages, system=system)

    first = turn(1, QUESTION)
    assert first.usage.cache_read_input_tokens < 50
    answer = {"role": "assistant", "content": first.content}
    second = turn(2, [*QUESTION, answer, {"role": "user", "content": "And in London?"}])
    assert prompt_tokens(first.usage) > 1000 * 0.99
    assert second.usage.cache_read_input_tokens >= prompt_tokens(first.usage) - 2
    assert second.usage.input_tokens < 50


def test_models_are_listed(claude) -> None:
    models = {model.id: model for model in claude.models.list(limit=1)}
    assert {"tiny", "thinker"} <= set(models)
    assert models["tiny"].max_input_tokens == CONTEXT
    assert claude.models.retrieve("tiny") == models["tiny"]


def test_errors_have_the_classes_of_the_client(claude, anthropic: ModuleType) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as missing:
        create(claude, model="none")
    assert missing.value.body["error"]["type"] == "not_found_error"
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError, match="does not accept images: it is a text model") as image:
        create(claude, [{"role": "user", "content": [picture]}])
    assert image.value.request_id
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: `messages`: the prompt has"):
        create(claude, [{"role": "user", "content": "word " * CONTEXT}])


def test_client_that_disconnects_ends_the_generation(daemon: Daemon, claude) -> None:
    with claude.messages.create(model="tiny", max_tokens=15000, messages=QUESTION, stream=True) as stream:
        assert next(iter(stream)).type == "message_start"

    def in_flight() -> int:
        return sum(worker["in_flight"] for worker in daemon.admin("GET", "/v0/workers")[1])

    wait_until(lambda: in_flight() == 0)


def test_keys_are_accepted_in_both_headers(home: Path, anthropic: ModuleType) -> None:
    with daemons.running(home) as daemon:
        key = daemon.admin("POST", "/v0/keys", {"name": "test"})[1]["key"]
        (home / "config.toml").write_text("[server]\nrequire_key = true\n")
        assert daemon.admin("POST", "/v0/reload", {})[0] == 200
        for credentials in ({"api_key": key}, {"api_key": None, "auth_token": key}):
            with anthropic.Anthropic(base_url=daemon.url, max_retries=0, **credentials) as client:
                assert not list(client.models.list())
        with (
            anthropic.Anthropic(base_url=daemon.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError, match="not valid"),
        ):
            client.models.list()
