"""The reply to a legacy completion, whole and streamed. Pure but for ids and the clock, which come in."""

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

import msgspec

from osaurusd.inference.events import Completed, Delta, Event, Finished, FinishReason, Started
from osaurusd.protocols.openai.render.envelope import Envelope, Usage, usage
from osaurusd.protocols.openai.render.logprobs import LegacyLogprobs, legacy_logprobs
from osaurusd.protocols.openai.render.splice import Splicer


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextHead(msgspec.Struct, frozen=True, kw_only=True):
    """What chunks begin with."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: None = None


class TextCompletion(TextHead, frozen=True, kw_only=True):
    """The reply without streaming."""

    choices: list[TextChoice]
    usage: Usage


async def completion(envelope: Envelope, events: AsyncIterator[Event]) -> TextCompletion:
    """Gather whole answers."""
    pieces: defaultdict[int, list[TextChoice]] = defaultdict(list)
    said: Counter[int] = Counter()
    async for event in events:
        if isinstance(event, Started):
            continue
        if isinstance(event, Completed):
            done = event
        elif piece := _piece(event, said):
            pieces[piece.index].append(piece)
    return TextCompletion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[_joined(index, parts) for index, parts in sorted(pieces.items())],
        usage=usage(done),
    )


async def chunks(
    envelope: Envelope, events: AsyncIterator[Event], *, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """The answers as JSON chunks: text as it comes, for each a finish reason; and usage if asked for."""
    splicer = Splicer(TextHead(id=envelope.id, created=envelope.created, model=envelope.model), include_usage)
    said: Counter[int] = Counter()
    async for event in events:
        if isinstance(event, Started):
            continue
        if isinstance(event, Completed):
            if include_usage:
                yield splicer.usage(event)
        elif piece := _piece(event, said):
            yield splicer.chunk(piece)


def _piece(event: Delta | Finished, said: Counter[int]) -> TextChoice | None:
    """What the event adds, if anything. `said` counts the characters of each answer so far."""
    if isinstance(event, Finished):
        return TextChoice(index=event.index, text="", finish_reason=event.reason)
    if not event.text and not event.logprobs:
        return None
    logprobs = legacy_logprobs(event.logprobs, said[event.index])
    said[event.index] += len(event.text)
    return TextChoice(index=event.index, text=event.text, logprobs=logprobs)


def _joined(index: int, parts: list[TextChoice]) -> TextChoice:
    """The parts of one answer as one; the last one has the finish reason."""
    return TextChoice(
        index=index,
        text="".join(part.text for part in parts),
        logprobs=_joined_logprobs([part.logprobs for part in parts if part.logprobs]),
        finish_reason=parts[-1].finish_reason,
    )


def _joined_logprobs(parts: list[LegacyLogprobs]) -> LegacyLogprobs | None:
    if not parts:
        return None
    columns = LegacyLogprobs.__struct_fields__
    return LegacyLogprobs(**{name: [row for part in parts for row in getattr(part, name)] for name in columns})
