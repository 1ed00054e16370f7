"""Renders the events of a generation as lines of a stream, or as one response."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from osaurusd.inference import events as neutral
from osaurusd.inference.events import Completed, Delta, Event, Finished, decode_arguments
from osaurusd.protocols.ollama.names import format_time
from osaurusd.protocols.ollama.types import (
    ChatPiece,
    FunctionCall,
    Logprob,
    Metrics,
    ResponseMessage,
    TextPiece,
    TokenLogprob,
    ToolCall,
)

NANOSECONDS = 10**9

Line = dict[str, Any]
"""The last line of a stream, or a whole response."""


class Renderer:
    """Renders the pieces of one response.

    Args:
        model: the model as the request names it.
        is_chat: whether a piece is a message instead of text.
    """

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._started = time.monotonic()

    def piece(self, delta: Delta, tool_calls: list[ToolCall]) -> ChatPiece | TextPiece:
        """Render new output."""
        now = datetime.now(UTC)
        logprobs = [_token_logprob(entry) for entry in delta.logprobs] if delta.logprobs else UNSET
        if self._is_chat:
            message = _message(delta.text, delta.reasoning, tool_calls)
            return ChatPiece(model=self._model, created_at=now, message=message, logprobs=logprobs)
        thinking = delta.reasoning or UNSET
        return TextPiece(model=self._model, created_at=now, response=delta.text, thinking=thinking, logprobs=logprobs)

    def end(self, reason: str, completed: Completed) -> Line:
        """Render the end of a stream."""
        return {**self.without_output(reason), **msgspec.to_builtins(self._metrics(completed))}

    def without_output(self, reason: str) -> Line:
        """Render the response to a request that only loads or unloads the model."""
        return {**self._head(), **self._output("", "", []), "done": True, "done_reason": reason}

    def keep_alive(self) -> ChatPiece | TextPiece:
        """Render a piece without output, which shows that the request is being processed."""
        return self.piece(Delta(), [])

    def join(self, pieces: Sequence[tuple[Delta, list[ToolCall]]], end: Line) -> Line:
        """Render the whole response."""
        text = "".join(delta.text for delta, _ in pieces)
        reasoning = "".join(delta.reasoning for delta, _ in pieces)
        calls = [call for _, tool_calls in pieces for call in tool_calls]
        logprobs = [_token_logprob(entry) for delta, _ in pieces for entry in delta.logprobs]
        line = {**end, **self._output(text, reasoning, calls)}
        return {**line, "logprobs": logprobs} if logprobs else line

    def _head(self) -> Line:
        return {"model": self._model, "created_at": format_time(datetime.now(UTC))}

    def _output(self, text: str, reasoning: str, tool_calls: list[ToolCall]) -> Line:
        if self._is_chat:
            return {"message": _message(text, reasoning, tool_calls)}
        return {"response": text, "thinking": reasoning} if reasoning else {"response": text}

    def _metrics(self, completed: Completed) -> Metrics:
        usage, timings = completed.usage, completed.timings
        return Metrics(
            total_duration=_nanoseconds(time.monotonic() - self._started),
            load_duration=_nanoseconds(timings.load),
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=_nanoseconds(timings.prefill),
            eval_count=usage.completion_tokens,
            eval_duration=_nanoseconds(timings.decode),
        )


class CallAssembler:
    """Assembles tool calls: their arguments are objects, so a call can only be sent when it is complete."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str | None, str, list[str]]] = {}

    def add(self, delta: Delta) -> list[ToolCall]:
        """Add pieces, and return the calls that are complete because a later one has begun."""
        if not delta.tool_calls:
            return []
        for piece in delta.tool_calls:
            if piece.index not in self._open:
                self._open[piece.index] = (piece.id, piece.name or "", [])
            self._open[piece.index][2].append(piece.arguments)
        last = max(self._open, default=0)
        return self._complete([index for index in self._open if index < last])

    def finish(self) -> list[ToolCall]:
        """Return the calls that are left when the choice is complete."""
        return self._complete(list(self._open))

    def _complete(self, indexes: list[int]) -> list[ToolCall]:
        return [_tool_call(index, *self._open.pop(index)) for index in sorted(indexes)]


class End(NamedTuple):
    """The end of a response."""

    reason: str
    completed: Completed


Piece = tuple[Delta, list[ToolCall]]
"""New output, and the calls that it completes."""


async def stream(renderer: Renderer, events: AsyncIterator[Event]) -> AsyncGenerator[ChatPiece | TextPiece | Line]:
    """Yield the lines of a stream."""
    async with contextlib.aclosing(_pieces(events)) as pieces:
        async for piece in pieces:
            yield renderer.end(*piece) if isinstance(piece, End) else renderer.piece(*piece)


async def collect(renderer: Renderer, events: AsyncIterator[Event]) -> Line:
    """Return the response once it is complete."""
    output: list[Piece] = []
    async with contextlib.aclosing(_pieces(events)) as pieces:
        async for piece in pieces:
            if isinstance(piece, End):
                end = piece
            else:
                output.append(piece)
    return renderer.join(output, renderer.end(*end))


async def _pieces(events: AsyncIterator[Event]) -> AsyncGenerator[Piece | End]:
    assembler, reason = CallAssembler(), "stop"
    async for event in events:
        match event:
            case Delta():
                calls = assembler.add(event)
                if event.text or event.reasoning or event.logprobs or calls:
                    yield event, calls
            case Finished():
                reason = "length" if event.reason == "length" else "stop"
                if calls := assembler.finish():
                    yield Delta(), calls
            case Completed():
                yield End(reason, event)


async def on_first_event(events: AsyncGenerator[Event], callback: Callable[[], None]) -> AsyncGenerator[Event]:
    """Call back when the first event arrives."""
    async with contextlib.aclosing(events):
        called = False
        async for event in events:
            if not called:
                called = True
                callback()
            yield event


def _message(text: str, reasoning: str, tool_calls: list[ToolCall]) -> ResponseMessage:
    return ResponseMessage(content=text, thinking=reasoning or UNSET, tool_calls=tool_calls or UNSET)


def _tool_call(index: int, call_id: str | None, name: str, pieces: list[str]) -> ToolCall:
    arguments = decode_arguments("".join(pieces))
    return ToolCall(id=call_id, function=FunctionCall(index=index, name=name, arguments=arguments))


def _token_logprob(entry: neutral.TokenLogprob) -> TokenLogprob:
    top = [Logprob(token=other.text, logprob=other.logprob or 0.0, bytes=other.bytes) for other in entry.top]
    return TokenLogprob(token=entry.text, logprob=entry.logprob or 0.0, bytes=entry.bytes, top_logprobs=top)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
