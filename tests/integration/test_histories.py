"""Histories that chat templates reject in their original form. A real daemon and workers with such templates."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests import daemons
from tests.models import make_tiny
from tests.osaurusd.worker.templates import TEMPLATES

QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(module_home: Path, tiny_tokenizer: Path) -> Iterator[OpenAI]:
    """A client of a daemon that serves tiny models with the templates of several families."""
    for name in ("gemma-2", "mistral-nemo", "qwen3-coder"):
        make_tiny(module_home / "models" / name, tiny_tokenizer, template=TEMPLATES[name])
    with daemons.running(module_home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        yield client


def complete(client: OpenAI, model: str, *messages, **fields):
    return client.chat.completions.create(
        model=model, messages=[*messages], **{"max_tokens": 2, "temperature": 0, **fields}
    )


@pytest.mark.parametrize("model", ["gemma-2", "mistral-nemo", "qwen3-coder"])
def test_a_truncated_tool_call_can_be_sent_back(client: OpenAI, model) -> None:
    fields = {"tools": [TOOL], "tool_choice": "required"}
    reply = complete(client, model, QUESTION, **fields, max_tokens=24).choices[0]
    assert reply.finish_reason == "length"
    call = reply.message.tool_calls[0]

    message = reply.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "The call was incomplete."}
    answer = complete(client, model, QUESTION, message, result, {"role": "user", "content": "Again."}, **fields)

    assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize("model", ["gemma-2", "mistral-nemo", "qwen3-coder"])
def test_two_user_messages_in_a_row_are_both_part_of_the_prompt(client: OpenAI, model) -> None:
    short = complete(client, model, QUESTION, {"role": "user", "content": "Please."})
    long = complete(client, model, QUESTION, {"role": "user", "content": "Please. " * 21})

    assert long.usage.prompt_tokens > short.usage.prompt_tokens + 20
