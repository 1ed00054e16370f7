"""What is asked, and what must be answered: each question is asked alone first, and among others afterwards."""

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

# Where the likeliest two tokens are closer than this, company may decide which of them it is.
LEAST_MARGIN = 1e-3

SHORT, MIDDLE, LONG = 5, 120, 500
"""Prompts of so many words."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """A chat and its answers, with the tokens that all of them took."""

    model: str
    fields: dict[str, Any]
    answers: list[str]
    tokens: int


@dataclass(frozen=True)
class Known:
    """Questions whose answers are known, by model."""

    greedy: dict[str, list[Question]] = field(default_factory=dict)
    seeded: dict[str, list[Question]] = field(default_factory=dict)
    several: dict[str, list[Question]] = field(default_factory=dict)
    turns: dict[str, list[Question]] = field(default_factory=dict)


def text(rng: random.Random, words: int) -> str:
    """Words at random."""
    return " ".join(rng.choices(WORDS, k=words))


def chat(content: str) -> Messages:
    """A chat of one turn."""
    return [{"role": "user", "content": content}]


async def ask_all_alone(client: AsyncOpenAI, rng: random.Random) -> Known:
    """Make up questions for every model, and ask them one after the other."""
    known = Known()
    for model in MODELS:
        known.greedy[model] = [await _clear(client, model, rng, words) for words in (SHORT, SHORT, MIDDLE, LONG)]
        known.seeded[model] = [await _alone(client, model, _drawn(rng, SHORT, 1)) for _ in range(3)]
        known.several[model] = [await _alone(client, model, _drawn(rng, MIDDLE, 3))]
        known.turns[model] = await _conversation(client, model, rng)
    return known


def _drawn(rng: random.Random, words: int, n: int) -> dict[str, Any]:
    """A question whose answers are drawn."""
    return {
        "messages": chat(text(rng, words)),
        "temperature": 0.7,
        "seed": rng.randrange(10**6),
        "n": n,
        "max_tokens": 12,
    }


async def _alone(client: AsyncOpenAI, model: str, fields: dict[str, Any]) -> Question:
    reply: ChatCompletion = await client.chat.completions.create(model=model, **fields)
    assert reply.usage is not None
    answers = [choice.message.content or "" for choice in reply.choices]
    return Question(model, fields, answers, reply.usage.completion_tokens)


async def _clear(client: AsyncOpenAI, model: str, rng: random.Random, words: int) -> Question:
    """A question whose likeliest answer no rounding can change."""
    while True:
        if question := await _if_clear(client, model, chat(text(rng, words)), rng.randint(8, 40)):
            return question


async def _conversation(client: AsyncOpenAI, model: str, rng: random.Random) -> list[Question]:
    """Three turns, each of which begins with all that was said before."""
    messages = chat(text(rng, MIDDLE))
    asked: list[Question] = []
    while len(asked) < 3:
        question = await _if_clear(client, model, messages, 16)
        if question is None:
            messages = [*messages[:-1], *chat(text(rng, MIDDLE))]
            continue
        asked.append(question)
        messages = [*messages, {"role": "assistant", "content": question.answers[0]}, *chat(text(rng, SHORT))]
    return asked


async def _if_clear(client: AsyncOpenAI, model: str, messages: Messages, tokens: int) -> Question | None:
    fields = {"messages": messages, "temperature": 0, "max_tokens": tokens}
    reply = await client.chat.completions.create(model=model, logprobs=True, top_logprobs=2, **fields)
    (choice,) = reply.choices
    assert choice.logprobs is not None
    tops = [[top.logprob for top in token.top_logprobs] for token in choice.logprobs.content or []]
    if any(first - second < LEAST_MARGIN for first, second in tops):
        return None
    assert reply.usage is not None
    return Question(model, fields, [choice.message.content or ""], reply.usage.completion_tokens)
