"""Clients that ask as they should, through OpenAI's library, and check what they get."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jsonschema
import openai
from openai import AsyncOpenAI

from tests.soak.models import CONTEXT_TOKENS, MODELS
from tests.soak.questions import LONG, MIDDLE, SHORT, Known, Question, chat, text

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "count"],
    "additionalProperties": False,
}
# More than the longest that the schema allows.
SCHEMA_TOKENS = 300
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}

LIKELIEST = 3


class WrongAnswer(Exception):
    """An answer that is not what it has to be."""


class Client:
    """Asks one question after the other.

    Args:
        client: of OpenAI.
        known: questions whose answers are known.
        rng: chooses what to ask.
    """

    def __init__(self, client: AsyncOpenAI, known: Known, rng: random.Random) -> None:
        self._client = client
        self._known = known
        self._rng = rng

    async def plain(self, model: str) -> None:
        """The likeliest answer, in one piece."""
        await self._ask(self._rng.choice(self._known.greedy[model]))

    async def streamed(self, model: str) -> None:
        """The likeliest answer, piece by piece."""
        question = self._rng.choice(self._known.greedy[model])
        stream = await self._client.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, **question.fields
        )
        said, usage, reason = "", None, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                said += choice.delta.content or ""
                reason = choice.finish_reason or reason
        _expect(question.answers[0], said)
        _expect(question.tokens, usage and usage.completion_tokens)
        _expect(True, reason in ("stop", "length"))

    async def seeded(self, model: str) -> None:
        """An answer that was drawn, and must be drawn again."""
        await self._ask(self._rng.choice(self._known.seeded[model]))

    async def several(self, model: str) -> None:
        """Several answers at once."""
        await self._ask(self._rng.choice(self._known.several[model]))

    async def conversation(self, model: str) -> None:
        """Turn after turn."""
        for question in self._known.turns[model]:
            await self._ask(question)

    async def repeated(self, model: str) -> None:
        """One question twice: all of its prompt is known then."""
        question = self._rng.choice(self._known.greedy[model])
        await self._ask(question)
        await self._ask(question)

    async def stopped(self, model: str) -> None:
        """An answer that ends before a stop string."""
        question = self._rng.choice(self._known.greedy[model])
        whole = question.answers[0]
        at = self._rng.randrange(len(whole))
        stop = whole[at : at + 3]
        reply = await self._client.chat.completions.create(model=model, stop=stop, **question.fields)
        _expect(
            (whole[: whole.index(stop)], "stop"), (reply.choices[0].message.content, reply.choices[0].finish_reason)
        )

    async def scored(self, model: str) -> None:
        """The likeliest answer, with how likely each token was."""
        question = self._rng.choice(self._known.greedy[model])
        reply = await self._client.chat.completions.create(
            model=model, logprobs=True, top_logprobs=LIKELIEST, **question.fields
        )
        (choice,) = reply.choices
        _expect(question.answers[0], choice.message.content)
        tokens = (choice.logprobs and choice.logprobs.content) or []
        _expect(question.tokens, len(tokens))
        for token in tokens:
            _expect(LIKELIEST, len(token.top_logprobs))
            _expect((True, token.token), (token.logprob <= 0, token.top_logprobs[0].token))

    async def constrained(self, model: str) -> None:
        """JSON by a schema."""
        schema = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        reply = await self._client.chat.completions.create(
            model=model, response_format=schema, **self._freely(SHORT, SCHEMA_TOKENS)
        )
        _expect("stop", reply.choices[0].finish_reason)
        jsonschema.validate(json.loads(reply.choices[0].message.content or ""), SCHEMA)

    async def called(self, model: str) -> None:
        """A call that is required."""
        reply = await self._client.chat.completions.create(
            model=model,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "note"}},
            **self._freely(SHORT, SCHEMA_TOKENS),
        )
        _expect("tool_calls", reply.choices[0].finish_reason)
        (call,) = reply.choices[0].message.tool_calls or []
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)

    async def completed(self, model: str) -> None:
        """Several texts and their scores, given back with a few tokens more."""
        prompts = [text(self._rng, SHORT) for _ in range(self._rng.randint(1, 6))]
        reply = await self._client.completions.create(
            model=model, prompt=prompts, echo=True, logprobs=1, max_tokens=self._rng.choice([0, 1, 8]), temperature=0
        )
        _expect([*range(len(prompts))], [choice.index for choice in reply.choices])
        for prompt, choice in zip(prompts, reply.choices, strict=True):
            _expect(prompt, choice.text[: len(prompt)])

    async def just_fitting(self, model: str) -> None:
        """A prompt that leaves room for one token."""
        prompt = [self._rng.randrange(100, 40000)] * (CONTEXT_TOKENS - 1)
        reply = await self._client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
        _expect(CONTEXT_TOKENS - 1, reply.usage and reply.usage.prompt_tokens)
        _expect(True, reply.choices[0].finish_reason == "stop" or (reply.usage and reply.usage.completion_tokens) == 1)

    async def too_long(self, model: str) -> None:
        """A prompt that leaves room for none."""
        await self._refused("context_length_exceeded", model=model, messages=chat(text(self._rng, 2 * CONTEXT_TOKENS)))

    async def unknown(self, model: str) -> None:
        """A model that is not here."""
        await self._refused("model_not_found", model=f"not-{model}", messages=chat("Hello!"))

    async def impossible(self, model: str) -> None:
        """Values that cannot be."""
        field, value = self._rng.choice([("temperature", 9), ("n", 0), ("top_logprobs", 99), ("max_tokens", -1)])
        await self._refused("invalid_request", model=model, messages=chat("Hello!"), extra_body={field: value})

    async def drawn(self, model: str) -> None:
        """Whatever comes to its mind, at length."""
        fields = self._freely(self._rng.choice([SHORT, MIDDLE, LONG]), self._rng.choice([1, 60, 200]))
        reply = await self._client.chat.completions.create(model=model, **fields)
        full = fields["max_tokens"] == (reply.usage and reply.usage.completion_tokens)
        _expect("length" if full else "stop", reply.choices[0].finish_reason)

    async def _ask(self, question: Question) -> None:
        reply = await self._client.chat.completions.create(model=question.model, **question.fields)
        _expect(question.answers, [choice.message.content for choice in reply.choices])
        _expect(question.tokens, reply.usage and reply.usage.completion_tokens)

    async def _refused(self, code: str, **fields: Any) -> None:
        try:
            await self._client.chat.completions.create(**fields)
        except openai.APIStatusError as error:
            if error.code == code:
                return
            raise
        raise WrongAnswer(f"an answer where {code} belongs")

    def _freely(self, words: int, tokens: int) -> dict[str, Any]:
        return {"messages": chat(text(self._rng, words)), "temperature": 1, "max_tokens": tokens}


KINDS: Sequence[Callable[[Client, str], Awaitable[None]]] = (
    Client.plain,
    Client.streamed,
    Client.seeded,
    Client.several,
    Client.conversation,
    Client.repeated,
    Client.stopped,
    Client.scored,
    Client.constrained,
    Client.called,
    Client.completed,
    Client.just_fitting,
    Client.too_long,
    Client.unknown,
    Client.impossible,
    Client.drawn,
)


def draw(rng: random.Random) -> tuple[Callable[[Client, str], Awaitable[None]], str]:
    """What to do next, and with which model."""
    return rng.choice(KINDS), rng.choice(MODELS)


def _expect(expected: object, actual: object) -> None:
    if expected != actual:
        raise WrongAnswer(f"{actual!r} where {expected!r} belongs")
