"""From worker events to OpenAI's reply objects. Pure but for ids and the clock, which come in."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal

import msgspec

from osaurusd import ipc
from osaurusd.catalog.record import ModelRecord

Event = ipc.Delta | ipc.Done


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: ipc.FinishReason


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a chat without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class RoleDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    content: str


class EmptyDelta(msgspec.Struct, frozen=True, kw_only=True):
    pass


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: RoleDelta | TextDelta | EmptyDelta
    logprobs: None = None
    finish_reason: ipc.FinishReason | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat. `usage` is null in all but the last one, and left out if it was not asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["osaurus"] = "osaurus"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What all objects of one reply have in common; `created` is in unix seconds."""

    id: str
    created: int
    model: str


async def completion(envelope: Envelope, events: AsyncIterator[Event]) -> Completion:
    """Gather a whole answer."""
    text: list[str] = []
    async for event in events:
        if isinstance(event, ipc.Delta):
            text.append(event.text)
        else:
            done = event
    message = AnswerMessage(content="".join(text))
    return Completion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[Choice(message=message, finish_reason=done.finish_reason)],
        usage=_usage(done),
    )


async def chunks(
    envelope: Envelope, events: AsyncIterator[Event], *, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """The answer as JSON chunks: a role, text as it comes, the finish reason, and usage if it was asked for."""
    usage = None if include_usage else msgspec.UNSET

    def chunk(choices: Sequence[ChunkChoice], usage: Usage | msgspec.UnsetType | None = usage) -> bytes:
        return msgspec.json.encode(
            Chunk(id=envelope.id, created=envelope.created, model=envelope.model, choices=list(choices), usage=usage)
        )

    # The role waits for the first event: until then the answer may still turn out to be an error.
    begun = False
    async for event in events:
        if not begun:
            begun = True
            yield chunk([ChunkChoice(delta=RoleDelta())])
        if isinstance(event, ipc.Done):
            yield chunk([ChunkChoice(delta=EmptyDelta(), finish_reason=event.finish_reason)])
            if include_usage:
                yield chunk([], _usage(event))
        elif event.text:
            yield chunk([ChunkChoice(delta=TextDelta(content=event.text))])


def model(record: ModelRecord, name: str) -> Model:
    """A model as the API lists it under one of its names."""
    return Model(id=name, created=record.created)


def _usage(done: ipc.Done) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        total_tokens=done.prompt_tokens + done.completion_tokens,
    )
