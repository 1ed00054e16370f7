"""Reference requests: each is sent alone first, and its response is the expected one among other requests."""

import random
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tests.soak.models import MODELS

WORDS = (
    *("amber", "basin", "copper", "delta", "ember", "forest", "garnet", "harbor"),
    *("island", "jasper", "kelp", "lagoon", "meadow", "nickel", "opal", "prairie"),
)

# If the two most likely tokens are closer than this, rounding in another batch may swap them.
MIN_MARGIN = 1e-3

SHORT, MEDIUM, LONG = 5, 120, 500
"""Prompt lengths in words."""

CONVERSATION_TURNS = 3

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reference:
    """A chat request with the text of its choices and their total number of tokens."""

    model: str
    fields: dict[str, Any]
    texts: list[str]
    completion_tokens: int


@dataclass(frozen=True)
class References:
    """Reference requests by model."""

    greedy: dict[str, list[Reference]] = field(default_factory=dict)
    seeded: dict[str, list[Reference]] = field(default_factory=dict)
    multiple_choices: dict[str, list[Reference]] = field(default_factory=dict)
    conversations: dict[str, list[Reference]] = field(default_factory=dict)


def random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def user_message(content: str) -> Messages:
    return [{"role": "user", "content": content}]


async def create_references(client: AsyncOpenAI, rng: random.Random) -> References:
    """Create reference requests for every model, and send them one at a time."""
    references = References()
    for model in MODELS:
        references.greedy[model] = [
            await create_greedy(client, model, rng, words) for words in (SHORT, SHORT, MEDIUM, LONG)
        ]
        references.seeded[model] = [await send_alone(client, model, seeded_fields(rng, SHORT, 1)) for _ in range(3)]
        references.multiple_choices[model] = [await send_alone(client, model, seeded_fields(rng, MEDIUM, 3))]
        references.conversations[model] = await create_conversation(client, model, rng)
    return references


def seeded_fields(rng: random.Random, words: int, n: int) -> dict[str, Any]:
    return {
        "messages": user_message(random_text(rng, words)),
        "temperature": 0.7,
        "seed": rng.randrange(10**6),
        "n": n,
        "max_tokens": 12,
    }


async def send_alone(client: AsyncOpenAI, model: str, fields: dict[str, Any]) -> Reference:
    response: ChatCompletion = await client.chat.completions.create(model=model, **fields)
    assert response.usage is not None
    texts = [choice.message.content or "" for choice in response.choices]
    return Reference(model, fields, texts, response.usage.completion_tokens)


async def create_greedy(client: AsyncOpenAI, model: str, rng: random.Random, words: int) -> Reference:
    """Create a request whose greedy output does not depend on rounding."""
    while True:
        messages = user_message(random_text(rng, words))
        if reference := await send_if_stable(client, model, messages, rng.randint(8, 40)):
            return reference


async def create_conversation(client: AsyncOpenAI, model: str, rng: random.Random) -> list[Reference]:
    """Create requests of which each continues the previous one."""
    messages = user_message(random_text(rng, MEDIUM))
    turns: list[Reference] = []
    while len(turns) < CONVERSATION_TURNS:
        reference = await send_if_stable(client, model, messages, 16)
        if reference is None:
            messages = [*messages[:-1], *user_message(random_text(rng, MEDIUM))]
            continue
        turns.append(reference)
        answer = {"role": "assistant", "content": reference.texts[0]}
        messages = [*messages, answer, *user_message(random_text(rng, SHORT))]
    return turns


async def send_if_stable(client: AsyncOpenAI, model: str, messages: Messages, max_tokens: int) -> Reference | None:
    """Return the reference, or None if its output depends on rounding."""
    fields: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": max_tokens}
    response = await client.chat.completions.create(model=model, logprobs=True, top_logprobs=2, **fields)
    (choice,) = response.choices
    assert choice.logprobs is not None
    top_logprobs = [[top.logprob for top in token.top_logprobs] for token in choice.logprobs.content or []]
    if any(first - second < MIN_MARGIN for first, second in top_logprobs):
        return None
    assert response.usage is not None
    return Reference(model, fields, [choice.message.content or ""], response.usage.completion_tokens)
