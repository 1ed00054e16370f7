"""What was processed once is not processed again, and the usage says so: the real daemon, worker and model."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.conftest import SMOLLM


def ask(client: OpenAI, *messages: dict[str, str], **fields):
    return client.chat.completions.create(
        **{"model": SMOLLM, "messages": list(messages), "temperature": 0, "max_tokens": 8, **fields}
    )


def cached(reply) -> int:
    return reply.usage.prompt_tokens_details.cached_tokens


@pytest.fixture
def system() -> dict[str, str]:
    """A system turn that no other test has."""
    rules = " ".join(f"Rule {number}: be brief, and be number {number}." for number in range(12))
    return {"role": "system", "content": f"{uuid.uuid4().hex} {rules}"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_same_chat_again_takes_one_token_and_gives_the_same_answer(client: OpenAI, system) -> None:
    first, again = (ask(client, system, user("What is the capital of France?")) for _ in range(2))

    assert cached(first) < 10
    assert first.usage.prompt_tokens - 1 == cached(again)
    assert first.choices[0].message.content == again.choices[0].message.content


def test_a_shared_system_prompt_is_processed_once(client: OpenAI, system) -> None:
    ask(client, system, user("Say hello."))
    other = ask(client, system, user("Name a colour."))
    alone = ask(client, {**system, "content": f" {system['content']}"}, user("Name a colour."))

    shared = other.usage.prompt_tokens - cached(other)
    assert shared < 20 < cached(other)
    assert cached(alone) < 10


def test_a_conversation_goes_on_from_where_it_was(client: OpenAI, system) -> None:
    turns = [system, user("What is the capital of France?")]
    first = ask(client, *turns)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, user("And of Italy?")]

    second = ask(client, *turns)

    # The answer is taken over too, up to where the template ends the turn.
    assert cached(second) >= first.usage.prompt_tokens + first.usage.completion_tokens


def test_several_answers_share_their_prompt(client: OpenAI, system) -> None:
    reply = ask(client, system, user("Name a colour."), n=3, temperature=1.2, seed=5, max_tokens=12)

    alone = ask(client, system, user("Name a colour."), n=1, temperature=1.2, seed=5, max_tokens=12)
    assert [0, 1, 2] == [choice.index for choice in reply.choices]
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert reply.choices[0].message.content == alone.choices[0].message.content
    assert reply.usage.prompt_tokens == alone.usage.prompt_tokens
    assert reply.usage.completion_tokens > alone.usage.completion_tokens


def test_chats_that_begin_alike_and_come_at_once_share_their_beginning(client: OpenAI, system) -> None:
    questions = ["Say hello.", "Name a colour.", "What is two plus two?", "Who are you?"]

    with ThreadPoolExecutor(4) as executor:
        replies = list(executor.map(lambda question: ask(client, system, user(question)), questions))

    computed = [reply.usage.prompt_tokens - cached(reply) for reply in replies]
    assert 3 == sum(count < 40 for count in computed)
