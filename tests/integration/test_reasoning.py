"""Reasoning is separated from content. A real daemon and worker, and a tiny model with reasoning markers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests import daemons
from tests.models import NO_END_TOKEN, REASONING_MARKERS, make_tiny, rename_tokens

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def reasoning_model(module_home: Path, tiny_tokenizer: Path) -> Iterator[tuple[OpenAI, int]]:
    """Run a daemon with a model whose output starts with reasoning; yield a client and the id of the end marker."""
    folder = module_home / "models" / "reasoner"
    make_tiny(folder, tiny_tokenizer, tie_word_embeddings=False, eos_token_id=NO_END_TOKEN)
    rename_tokens(folder, REASONING_MARKERS)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (end,) = [token["id"] for token in tokens if token["content"] == "</think>"]
    with daemons.running(module_home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client, end


def complete(client: OpenAI, **fields):
    return client.chat.completions.create(
        **{
            "model": "reasoner",
            "messages": QUESTION,
            "temperature": 0,
            "max_tokens": 8,
            **fields,
        }
    )


def end_reasoning_immediately(end: int) -> dict[str, object]:
    """Return fields that make the end marker by far the most likely token, but only once."""
    return {"logit_bias": {str(end): 10}, "extra_body": {"repetition_penalty": 10}}


def test_unfinished_reasoning_is_not_content(reasoning_model) -> None:
    client, _ = reasoning_model
    reply = complete(client)

    message = reply.choices[0].message
    assert message.reasoning_content
    assert not message.content
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens_details.reasoning_tokens == 8


def test_output_after_the_reasoning_is_content(reasoning_model) -> None:
    client, end = reasoning_model
    reply = complete(client, **end_reasoning_immediately(end))

    message = reply.choices[0].message
    assert message.content
    assert "think" not in message.content
    assert getattr(message, "reasoning_content", None) is None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 1


def test_reasoning_is_streamed_in_its_own_field(reasoning_model) -> None:
    client, _ = reasoning_model
    deltas = [chunk.choices[0].delta for chunk in complete(client, stream=True)]

    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert complete(client).choices[0].message.reasoning_content == reasoning
    assert "".join(delta.content or "" for delta in deltas) == ""


def test_response_format_applies_after_the_reasoning(reasoning_model) -> None:
    client, end = reasoning_model
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}

    unfinished = complete(client, response_format=response_format)
    finished = complete(client, response_format=response_format, logit_bias={str(end): 100})

    assert unfinished.choices[0].message.reasoning_content
    assert not unfinished.choices[0].message.content
    assert finished.choices[0].message.content.strip() in ('"yes"', '"no"')
    assert finished.choices[0].finish_reason == "stop"
