"""Well-behaved clients: they send valid and invalid requests through OpenAI's library and check each response."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jsonschema
import openai
from openai import AsyncOpenAI

from tests.soak.models import CONTEXT_TOKENS
from tests.soak.references import LONG, MEDIUM, SHORT, Reference, References, random_text, user_message

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
# More than the longest output that the schema allows.
SCHEMA_TOKENS = 300
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}

TOP_LOGPROBS = 3


class WrongResponse(Exception):
    """The response differs from the expected one."""


class Client:
    """Sends one request after another.

    Args:
        client: OpenAI's client.
        references: requests with known responses.
        rng: chooses requests.
    """

    def __init__(self, client: AsyncOpenAI, references: References, rng: random.Random) -> None:
        self._client = client
        self._references = references
        self._rng = rng

    async def greedy(self, model: str) -> None:
        await self._check_reference(self._rng.choice(self._references.greedy[model]))

    async def streamed(self, model: str) -> None:
        reference = self._rng.choice(self._references.greedy[model])
        stream = await self._client.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, **reference.fields
        )
        text, usage, finish_reason = "", None, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish_reason = choice.finish_reason or finish_reason
        expect(reference.texts[0], text)
        expect(reference.completion_tokens, usage and usage.completion_tokens)
        expect(True, finish_reason in ("stop", "length"))

    async def seeded(self, model: str) -> None:
        await self._check_reference(self._rng.choice(self._references.seeded[model]))

    async def multiple_choices(self, model: str) -> None:
        await self._check_reference(self._rng.choice(self._references.multiple_choices[model]))

    async def conversation(self, model: str) -> None:
        for reference in self._references.conversations[model]:
            await self._check_reference(reference)

    async def repeated(self, model: str) -> None:
        """Send a request twice: the second time, its whole prompt is in the prefix cache."""
        reference = self._rng.choice(self._references.greedy[model])
        await self._check_reference(reference)
        await self._check_reference(reference)

    async def stop_string(self, model: str) -> None:
        reference = self._rng.choice(self._references.greedy[model])
        text = reference.texts[0]
        start = self._rng.randrange(len(text))
        stop = text[start : start + 3]
        response = await self._client.chat.completions.create(model=model, stop=stop, **reference.fields)
        (choice,) = response.choices
        expect((text[: text.index(stop)], "stop"), (choice.message.content, choice.finish_reason))

    async def logprobs(self, model: str) -> None:
        reference = self._rng.choice(self._references.greedy[model])
        response = await self._client.chat.completions.create(
            model=model, logprobs=True, top_logprobs=TOP_LOGPROBS, **reference.fields
        )
        (choice,) = response.choices
        expect(reference.texts[0], choice.message.content)
        tokens = (choice.logprobs and choice.logprobs.content) or []
        expect(reference.completion_tokens, len(tokens))
        for token in tokens:
            expect(TOP_LOGPROBS, len(token.top_logprobs))
            expect((True, token.token), (token.logprob <= 0, token.top_logprobs[0].token))

    async def json_schema(self, model: str) -> None:
        response_format = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        response = await self._client.chat.completions.create(
            model=model, response_format=response_format, **self._random_fields(SHORT, SCHEMA_TOKENS)
        )
        expect("stop", response.choices[0].finish_reason)
        jsonschema.validate(json.loads(response.choices[0].message.content or ""), SCHEMA)

    async def required_tool_call(self, model: str) -> None:
        response = await self._client.chat.completions.create(
            model=model,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "note"}},
            **self._random_fields(SHORT, SCHEMA_TOKENS),
        )
        expect("tool_calls", response.choices[0].finish_reason)
        (call,) = response.choices[0].message.tool_calls or []
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)

    async def text_completion(self, model: str) -> None:
        """Send several prompts, with echo and log-probabilities."""
        prompts = [random_text(self._rng, SHORT) for _ in range(self._rng.randint(1, 6))]
        max_tokens = self._rng.choice([0, 1, 8])
        response = await self._client.completions.create(
            model=model, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
        )
        expect([*range(len(prompts))], [choice.index for choice in response.choices])
        for prompt, choice in zip(prompts, response.choices, strict=True):
            expect(prompt, choice.text[: len(prompt)])

    async def full_context(self, model: str) -> None:
        """Send a prompt that leaves room for one token."""
        prompt = [self._rng.randrange(100, 40000)] * (CONTEXT_TOKENS - 1)
        response = await self._client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
        assert response.usage is not None
        expect(CONTEXT_TOKENS - 1, response.usage.prompt_tokens)
        expect(True, response.choices[0].finish_reason == "stop" or response.usage.completion_tokens == 1)

    async def context_overflow(self, model: str) -> None:
        messages = user_message(random_text(self._rng, 2 * CONTEXT_TOKENS))
        await self._check_error("context_length_exceeded", model=model, messages=messages)

    async def unknown_model(self, model: str) -> None:
        await self._check_error("model_not_found", model=f"not-{model}", messages=user_message("Hello!"))

    async def invalid_value(self, model: str) -> None:
        field, value = self._rng.choice([("temperature", 9), ("n", 0), ("top_logprobs", 99), ("top_p", 2)])
        messages = user_message("Hello!")
        await self._check_error("invalid_request", model=model, messages=messages, extra_body={field: value})

    async def sampled(self, model: str) -> None:
        fields = self._random_fields(self._rng.choice([SHORT, MEDIUM, LONG]), self._rng.choice([1, 60, 200]))
        response = await self._client.chat.completions.create(model=model, **fields)
        is_full = fields["max_tokens"] == (response.usage and response.usage.completion_tokens)
        expect("length" if is_full else "stop", response.choices[0].finish_reason)

    async def _check_reference(self, reference: Reference) -> None:
        response = await self._client.chat.completions.create(model=reference.model, **reference.fields)
        expect(reference.texts, [choice.message.content for choice in response.choices])
        expect(reference.completion_tokens, response.usage and response.usage.completion_tokens)

    async def _check_error(self, code: str, **fields: Any) -> None:
        try:
            await self._client.chat.completions.create(**fields)
        except openai.APIStatusError as error:
            if error.code == code:
                return
            raise
        raise WrongResponse(f"expected the error {code}, got a response")

    def _random_fields(self, words: int, max_tokens: int) -> dict[str, Any]:
        messages = user_message(random_text(self._rng, words))
        return {"messages": messages, "temperature": 1, "max_tokens": max_tokens}


KINDS: Sequence[Callable[[Client, str], Awaitable[None]]] = (
    Client.greedy,
    Client.streamed,
    Client.seeded,
    Client.multiple_choices,
    Client.conversation,
    Client.repeated,
    Client.stop_string,
    Client.logprobs,
    Client.json_schema,
    Client.required_tool_call,
    Client.text_completion,
    Client.full_context,
    Client.context_overflow,
    Client.unknown_model,
    Client.invalid_value,
    Client.sampled,
)


def expect(expected: object, actual: object) -> None:
    if expected != actual:
        raise WrongResponse(f"expected {expected!r}, got {actual!r}")
