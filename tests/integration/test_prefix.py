"""The prefix cache: `cached_tokens` counts prompt tokens that were not recomputed. A real daemon and worker."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI

from tests import daemons
from tests.models import make_tiny

DIGIT_SEVEN = "39"
"""The token for this digit, of which each is a token."""


@pytest.fixture(scope="module")
def tiny_client(module_home: Path, tiny_tokenizer: Path) -> Iterator[OpenAI]:
    """The official client, connected to a daemon with a tiny model."""
    make_tiny(module_home / "models" / "tiny", tiny_tokenizer)
    with (
        daemons.running(module_home) as daemon,
        OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as openai_client,
    ):
        yield openai_client


def complete(client: OpenAI, *messages: dict[str, str], **fields):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": list(messages), "temperature": 0, "max_tokens": 8, **fields}
    )


def cached_tokens(reply) -> int:
    return reply.usage.prompt_tokens_details.cached_tokens


@pytest.fixture
def system() -> dict[str, str]:
    """A system message that no other test uses."""
    rules = " ".join(f"Rule {number}: be brief, and be number {number}." for number in range(12))
    return {"role": "system", "content": f"{uuid.uuid4().hex} {rules}"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_repeated_chat_processes_one_token_and_has_the_same_output(tiny_client: OpenAI, system) -> None:
    first, again = (complete(tiny_client, system, user("What is the capital of France?")) for _ in range(2))

    assert cached_tokens(first) < 10
    assert first.usage.prompt_tokens - 1 == cached_tokens(again)
    assert first.choices[0].message.content == again.choices[0].message.content


def test_shared_system_message_is_processed_once(tiny_client: OpenAI, system) -> None:
    complete(tiny_client, system, user("Say hello."))
    second = complete(tiny_client, system, user("Name a colour."))
    unrelated = complete(tiny_client, {**system, "content": f" {system['content']}"}, user("Name a colour."))

    computed = second.usage.prompt_tokens - cached_tokens(second)
    assert computed < 20 < cached_tokens(second)
    assert cached_tokens(unrelated) < 10


def test_next_message_of_a_conversation_reuses_the_earlier_ones(tiny_client: OpenAI, system) -> None:
    messages = [system, user("What is the capital of France?")]
    # Arbitrary output may be tokenized differently as part of a prompt; digits are not.
    first = complete(tiny_client, *messages, logit_bias={DIGIT_SEVEN: 100})
    assert "7" * 8 == first.choices[0].message.content
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, user("And of Italy?")]

    second = complete(tiny_client, *messages)

    # The output is cached too, up to where the template ends the message.
    assert cached_tokens(second) >= first.usage.prompt_tokens + first.usage.completion_tokens


def test_choices_share_their_prompt(tiny_client: OpenAI, system) -> None:
    reply = complete(tiny_client, system, user("Name a colour."), n=3, temperature=1.2, seed=5, max_tokens=12)

    alone = complete(tiny_client, system, user("Name a colour."), n=1, temperature=1.2, seed=5, max_tokens=12)
    assert [0, 1, 2] == [choice.index for choice in reply.choices]
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert reply.choices[0].message.content == alone.choices[0].message.content
    assert reply.usage.prompt_tokens == alone.usage.prompt_tokens
    assert reply.usage.completion_tokens > alone.usage.completion_tokens


def test_concurrent_chats_share_their_common_prefix(tiny_client: OpenAI, system) -> None:
    questions = ["Say hello.", "Name a colour.", "What is two plus two?", "Who are you?"]

    with ThreadPoolExecutor(4) as executor:
        replies = list(executor.map(lambda question: complete(tiny_client, system, user(question)), questions))

    computed = [reply.usage.prompt_tokens - cached_tokens(reply) for reply in replies]
    assert sum(count < 40 for count in computed) == 3
