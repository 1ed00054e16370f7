"""Renders the events of a generation as the events of a stream, or as one message."""

import base64
import contextlib
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Literal, NamedTuple

import msgspec

from osaurusd.inference import events as neutral
from osaurusd.inference.events import Completed, Delta, Event, Finished, Started, ToolCallDelta, decode_arguments
from osaurusd.protocols.anthropic.types import (
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
    ResponseBlock,
    ResponseMessage,
    SignatureDelta,
    Stop,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
)

ThinkingDisplay = Literal["shown", "omitted", "none"]
"""Whether a response has thinking blocks with their text, without it, or none."""

_encode = msgspec.json.Encoder().encode


class Head(NamedTuple):
    """What is known about a response before it begins."""

    model: str
    max_tokens: int
    thinking: ThinkingDisplay


async def stream(head: Head, events: AsyncIterator[Event]) -> AsyncGenerator[tuple[str, bytes]]:
    """Yield the events of a stream with their names."""
    async with contextlib.aclosing(_render(head, events)) as rendered:
        async for event in rendered:
            name = event.__struct_config__.tag
            yield str(name), _encode(event)


async def collect(head: Head, events: AsyncIterator[Event]) -> ResponseMessage:
    """Return the message once it is complete."""
    blocks: list[ResponseBlock] = []
    pieces: list[BlockDelta] = []
    async with contextlib.aclosing(_render(head, events)) as rendered:
        async for event in rendered:
            match event:
                case MessageStart():
                    message = event.message
                case ContentBlockStart():
                    block, pieces = event.content_block, []
                case ContentBlockDelta():
                    pieces.append(event.delta)
                case ContentBlockStop():
                    blocks.append(_join(block, pieces))
                case MessageDelta():
                    stop, usage = event.delta, event.usage
    return msgspec.structs.replace(
        message, content=blocks, stop_reason=stop.stop_reason, stop_sequence=stop.stop_sequence, usage=usage
    )


def _join(block: ResponseBlock, pieces: list[BlockDelta]) -> ResponseBlock:
    match block:
        case TextBlock():
            return TextBlock(text="".join(piece.text for piece in pieces if isinstance(piece, TextDelta)))
        case ThinkingBlock():
            thinking = "".join(piece.thinking for piece in pieces if isinstance(piece, ThinkingDelta))
            signature = "".join(piece.signature for piece in pieces if isinstance(piece, SignatureDelta))
            return ThinkingBlock(thinking=thinking, signature=signature)
        case ToolUseBlock():
            text = "".join(piece.partial_json for piece in pieces if isinstance(piece, InputJsonDelta))
            return msgspec.structs.replace(block, input=decode_arguments(text))


async def _render(head: Head, events: AsyncIterator[Event]) -> AsyncGenerator[StreamEvent]:
    blocks = _Blocks(head.thinking)
    finished = Finished(reason="stop")
    async for event in events:
        match event:
            case Started():
                yield MessageStart(message=_start(head, event))
                yield Ping()
            case Delta():
                for rendered in blocks.add(event):
                    yield rendered
            case Finished():
                finished = event
                for rendered in blocks.close():
                    yield rendered
            case Completed():
                reason = _stop_reason(finished, event, head.max_tokens)
                yield MessageDelta(
                    delta=Stop(stop_reason=reason, stop_sequence=finished.stop), usage=_usage(event.usage)
                )
                yield MessageStop()


def _start(head: Head, started: Started) -> ResponseMessage:
    usage = neutral.Usage(prompt_tokens=started.prompt_tokens, cached_tokens=started.cached_tokens)
    return ResponseMessage(id=f"msg_{uuid.uuid4().hex}", model=head.model, usage=_usage(usage))


def _usage(usage: neutral.Usage) -> Usage:
    return Usage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )


def _stop_reason(finished: Finished, completed: Completed, max_tokens: int) -> StopReason:
    match finished.reason:
        case "tool_calls":
            return "tool_use"
        case "length":
            is_full = completed.usage.completion_tokens < max_tokens
            return "model_context_window_exceeded" if is_full else "max_tokens"
    return "end_turn" if finished.stop is None else "stop_sequence"


class _Blocks:
    """Divides an output into blocks, of which one is open at a time.

    Args:
        thinking: how thinking is displayed.
    """

    def __init__(self, thinking: ThinkingDisplay) -> None:
        self._thinking = thinking
        self._index = -1
        self._kind: str | None = None
        self._digest = hashlib.sha256()

    def add(self, delta: Delta) -> Iterator[StreamEvent]:
        """Render new output."""
        if delta.reasoning and self._thinking != "none":
            yield from self._open("thinking", ThinkingBlock())
            self._digest.update(delta.reasoning.encode())
            if self._thinking == "shown":
                yield self._delta(ThinkingDelta(thinking=delta.reasoning))
        if delta.text:
            yield from self._open("text", TextBlock())
            yield self._delta(TextDelta(text=delta.text))
        for piece in delta.tool_calls:
            yield from self._add_call(piece)

    def _add_call(self, piece: ToolCallDelta) -> Iterator[StreamEvent]:
        call_id = f"toolu_{(piece.id or '').removeprefix('call_')}"
        yield from self._open(f"tool_use {piece.index}", ToolUseBlock(id=call_id, name=piece.name or ""))
        if piece.arguments:
            yield self._delta(InputJsonDelta(partial_json=piece.arguments))

    def close(self) -> Iterator[StreamEvent]:
        """Close the open block, if there is one."""
        if self._kind == "thinking":
            # Clients return it with the thinking, and check only that there is one.
            yield self._delta(SignatureDelta(signature=base64.b64encode(self._digest.digest()).decode()))
        if self._kind is not None:
            yield ContentBlockStop(index=self._index)
        self._kind = None

    def _open(self, kind: str, block: ResponseBlock) -> Iterator[StreamEvent]:
        """Open a block, unless one of its kind is open."""
        if self._kind == kind:
            return
        yield from self.close()
        self._index += 1
        self._kind = kind
        self._digest = hashlib.sha256()
        yield ContentBlockStart(index=self._index, content_block=block)

    def _delta(self, delta: BlockDelta) -> ContentBlockDelta:
        return ContentBlockDelta(index=self._index, delta=delta)
