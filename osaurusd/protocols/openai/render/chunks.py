"""The reply to a chat, streamed as it comes. Pure but for ids and the clock, which come in."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from osaurusd.inference import events as neutral
from osaurusd.inference.events import Completed, Delta, Event, Finished, FinishReason, Started
from osaurusd.protocols.openai.render.envelope import Envelope
from osaurusd.protocols.openai.render.logprobs import ChatLogprobs, chat_logprobs
from osaurusd.protocols.openai.render.splice import Splicer


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a call. Only the first one has id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What is new in an answer; what is not is left out."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChoiceDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChunkHead(msgspec.Struct, frozen=True, kw_only=True):
    """What all chunks of a reply begin with."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    service_tier: None = None
    system_fingerprint: None = None


_ROLE = ChoiceDelta(role="assistant", content="", refusal=None)
_NOTHING = ChoiceDelta()


async def chunks(
    envelope: Envelope, events: AsyncIterator[Event], *, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """The answers as JSON chunks: each one's role, then what is new, then its finish reason; usage if asked for."""
    splicer = Splicer(ChunkHead(id=envelope.id, created=envelope.created, model=envelope.model), include_usage)
    begun: set[int] = set()
    async for event in events:
        if isinstance(event, Started):
            continue
        if isinstance(event, Completed):
            if include_usage:
                yield splicer.usage(event)
            continue
        # The role waits for the first event: until then the answer may still turn out to be an error.
        if event.index not in begun:
            begun.add(event.index)
            yield splicer.chunk(ChunkChoice(index=event.index, delta=_ROLE))
        if isinstance(event, Finished):
            yield splicer.chunk(ChunkChoice(index=event.index, delta=_NOTHING, finish_reason=event.reason))
        elif event.text or event.reasoning or event.tool_calls or event.logprobs:
            yield splicer.chunk(_choice(event))


def _choice(event: Delta) -> ChunkChoice:
    delta = ChoiceDelta(
        content=event.text or UNSET,
        reasoning_content=event.reasoning or UNSET,
        tool_calls=[_call(piece) for piece in event.tool_calls] or UNSET,
    )
    return ChunkChoice(index=event.index, delta=delta, logprobs=chat_logprobs(event.logprobs))


def _call(piece: neutral.ToolCallDelta) -> ToolCallDelta:
    if piece.id is None or piece.name is None:
        return ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.arguments))
    function = FunctionDelta(name=piece.name, arguments=piece.arguments)
    return ToolCallDelta(index=piece.index, id=piece.id, type="function", function=function)
