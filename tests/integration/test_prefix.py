"""The prefix cache: `cached_tokens` counts prompt tokens that were not recomputed. A real daemon, worker and model."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.conftest import SMOLLM


def complete(client: OpenAI, *messages: dict[str, str], **fields):
    return client.chat.completions.create(
        **{"model": SMOLLM, "messages": list(messages), "temperature": 0, "max_tokens": 8, **fields}
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


def test_repeated_chat_processes_one_token_and_has_the_same_output(client: OpenAI, system) -> None:
    first, again = (complete(client, system, user("What is the capital of France?")) for _ in range(2))

    assert cached_tokens(first) < 10
    assert first.usage.prompt_tokens - 1 == cached_tokens(again)
    assert first.choices[0].message.content == again.choices[0].message.content


def test_shared_system_message_is_processed_once(client: OpenAI, system) -> None:
    complete(client, system, user("Say hello."))
    second = complete(client, system, user("Name a colour."))
    unrelated = complete(client, {**system, "content": f" {system['content']}"}, user("Name a colour."))

    computed = second.usage.prompt_tokens - cached_tokens(second)
    assert computed < 20 < cached_tokens(second)
    assert cached_tokens(unrelated) < 10


def test_next_message_of_a_conversation_reuses_the_earlier_ones(client: OpenAI, system) -> None:
    messages = [system, user("What is the capital of France?")]
    first = complete(client, *messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, user("And of Italy?")]

    second = complete(client, *messages)

    # The output is cached too, up to where the template ends the message.
    assert cached_tokens(second) >= first.usage.prompt_tokens + first.usage.completion_tokens


def test_choices_share_their_prompt(client: OpenAI, system) -> None:
    reply = complete(client, system, user("Name a colour."), n=3, temperature=1.2, seed=5, max_tokens=12)

    alone = complete(client, system, user("Name a colour."), n=1, temperature=1.2, seed=5, max_tokens=12)
    assert [0, 1, 2] == [choice.index for choice in reply.choices]
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert reply.choices[0].message.content == alone.choices[0].message.content
    assert reply.usage.prompt_tokens == alone.usage.prompt_tokens
    assert reply.usage.completion_tokens > alone.usage.completion_tokens


def test_concurrent_chats_share_their_common_prefix(client: OpenAI, system) -> None:
    questions = ["Say hello.", "Name a colour.", "What is two plus two?", "Who are you?"]

    with ThreadPoolExecutor(4) as executor:
        replies = list(executor.map(lambda question: complete(client, system, user(question)), questions))

    computed = [reply.usage.prompt_tokens - cached_tokens(reply) for reply in replies]
    assert sum(count < 40 for count in computed) == 3
