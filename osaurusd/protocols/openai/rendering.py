"""Renders the events of a generation as OpenAI's responses, whole or streamed."""

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
from msgspec import UNSET

from osaurusd.inference import events as neutral
from osaurusd.inference.events import Completed, Delta, Event, Finished, FinishReason, Progress, Started
from osaurusd.protocols.openai.chat_types import (
    ChatChoice,
    ChatChunkChoice,
    ChatChunkHead,
    ChatCompletion,
    ChatProgressChunk,
    ChoiceDelta,
    FunctionCall,
    FunctionCallDelta,
    PromptProgress,
    ResponseMessage,
    ToolCall,
    ToolCallDelta,
)
from osaurusd.protocols.openai.common import ResponseHead, Usage
from osaurusd.protocols.openai.completion_types import Completion, CompletionChoice, CompletionHead
from osaurusd.protocols.openai.logprobs import chat_logprobs, completion_logprobs, join_completion_logprobs

DONE = b"[DONE]"
"""The last event of a stream that succeeded."""

_ROLE = ChoiceDelta(role="assistant", content="", refusal=None)
_EMPTY = ChoiceDelta()
_encode = msgspec.json.Encoder().encode


class ChunkEncoder:
    """Encodes the chunks of one stream. A stream has about one per token, so the common part is encoded only once.

    Args:
        head: the common part.
        include_usage: whether chunks have a `usage` field, null in all but the last one.
    """

    def __init__(self, head: msgspec.Struct, *, include_usage: bool) -> None:
        self._head = _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if include_usage else b"]}"

    def encode(self, choice: msgspec.Struct) -> bytes:
        """Encode a chunk with one choice."""
        return b"".join((self._head, _encode(choice), self._tail))

    def encode_usage(self, completed: Completed) -> bytes:
        """Encode the last chunk, which has no choices."""
        return b"".join((self._head, b'],"usage":', _encode(Usage.from_completed(completed)), b"}"))


# Chat completions


class _ChoiceCollector:
    """Assembles a choice from its events."""

    def __init__(self) -> None:
        self.finish_reason: FinishReason = "stop"
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, ToolCall] = {}
        self._logprobs: list[neutral.TokenLogprob] = []

    def add(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._reasoning.append(delta.reasoning)
        self._logprobs += delta.logprobs
        for piece in delta.tool_calls:
            if piece.id is not None and piece.name is not None:
                self._tool_calls[piece.index] = ToolCall(id=piece.id, function=FunctionCall(name=piece.name))
            self._tool_calls[piece.index].function.arguments += piece.arguments

    def choice(self, index: int) -> ChatChoice:
        text, tool_calls = "".join(self._text), list(self._tool_calls.values())
        message = ResponseMessage(
            content=None if tool_calls and not text else text,
            reasoning_content="".join(self._reasoning) or UNSET,
            tool_calls=tool_calls or UNSET,
        )
        logprobs = chat_logprobs(self._logprobs)
        return ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=self.finish_reason)


async def collect_chat(head: ResponseHead, events: AsyncIterator[Event]) -> ChatCompletion:
    """Return the response once every choice is complete."""
    choices: defaultdict[int, _ChoiceCollector] = defaultdict(_ChoiceCollector)
    async for event in events:
        match event:
            case Delta():
                choices[event.index].add(event)
            case Finished():
                choices[event.index].finish_reason = event.reason
            case Completed():
                completed = event
    return ChatCompletion(
        **head.fields(),
        choices=[collector.choice(index) for index, collector in sorted(choices.items())],
        usage=Usage.from_completed(completed),
    )


async def stream_chat(
    head: ResponseHead, events: AsyncIterator[Event], *, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """Yield chunks: for each choice its role, its output and its finish reason; then the usage if requested."""
    encoder = ChunkEncoder(ChatChunkHead(**head.fields()), include_usage=include_usage)
    started: set[int] = set()
    async for event in events:
        if isinstance(event, Started):
            continue
        if isinstance(event, Progress):
            yield _encode(_chat_progress(head, event))
            continue
        if isinstance(event, Completed):
            if include_usage:
                yield encoder.encode_usage(event)
            continue
        # The role waits for the first event of the choice: until then, the request may still fail with a status.
        if event.index not in started:
            started.add(event.index)
            yield encoder.encode(ChatChunkChoice(index=event.index, delta=_ROLE))
        if isinstance(event, Finished):
            yield encoder.encode(ChatChunkChoice(index=event.index, delta=_EMPTY, finish_reason=event.reason))
        elif event.text or event.reasoning or event.tool_calls or event.logprobs:
            yield encoder.encode(_chat_choice(event))


def _chat_progress(head: ResponseHead, event: Progress) -> ChatProgressChunk:
    progress = PromptProgress(total=event.prompt_tokens, cache=event.cached_tokens, processed=event.prefilled)
    return ChatProgressChunk(**head.fields(), prompt_progress=progress)


def _chat_choice(event: Delta) -> ChatChunkChoice:
    delta = ChoiceDelta(
        content=event.text or UNSET,
        reasoning_content=event.reasoning or UNSET,
        tool_calls=[_tool_call(piece) for piece in event.tool_calls] or UNSET,
    )
    return ChatChunkChoice(index=event.index, delta=delta, logprobs=chat_logprobs(event.logprobs))


def _tool_call(piece: neutral.ToolCallDelta) -> ToolCallDelta:
    if piece.id is None or piece.name is None:
        return ToolCallDelta(index=piece.index, function=FunctionCallDelta(arguments=piece.arguments))
    function = FunctionCallDelta(name=piece.name, arguments=piece.arguments)
    return ToolCallDelta(index=piece.index, id=piece.id, type="function", function=function)


# Legacy completions


async def collect_completion(head: ResponseHead, events: AsyncIterator[Event]) -> Completion:
    """Return the response once every choice is complete."""
    pieces: defaultdict[int, list[CompletionChoice]] = defaultdict(list)
    lengths: Counter[int] = Counter()
    async for event in events:
        if isinstance(event, Completed):
            completed = event
        elif not isinstance(event, Started | Progress) and (piece := _completion_piece(event, lengths)):
            pieces[piece.index].append(piece)
    return Completion(
        **head.fields(),
        choices=[_join_pieces(index, parts) for index, parts in sorted(pieces.items())],
        usage=Usage.from_completed(completed),
    )


async def stream_completion(
    head: ResponseHead, events: AsyncIterator[Event], *, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """Yield chunks: for each choice its text and its finish reason; then the usage if requested."""
    encoder = ChunkEncoder(CompletionHead(**head.fields()), include_usage=include_usage)
    lengths: Counter[int] = Counter()
    async for event in events:
        if isinstance(event, Completed):
            if include_usage:
                yield encoder.encode_usage(event)
        elif not isinstance(event, Started | Progress) and (piece := _completion_piece(event, lengths)):
            yield encoder.encode(piece)


def _completion_piece(event: Delta | Finished, lengths: Counter[int]) -> CompletionChoice | None:
    """Return what the event adds to a choice, if anything. `lengths` counts the characters of each choice so far."""
    if isinstance(event, Finished):
        return CompletionChoice(index=event.index, text="", finish_reason=event.reason)
    if not event.text and not event.logprobs:
        return None
    logprobs = completion_logprobs(event.logprobs, lengths[event.index])
    lengths[event.index] += len(event.text)
    return CompletionChoice(index=event.index, text=event.text, logprobs=logprobs)


def _join_pieces(index: int, pieces: list[CompletionChoice]) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text="".join(piece.text for piece in pieces),
        logprobs=join_completion_logprobs([piece.logprobs for piece in pieces if piece.logprobs]),
        # Only the last piece has one.
        finish_reason=pieces[-1].finish_reason,
    )
