"""The reply to a chat, whole. Pure but for ids and the clock, which come in."""

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from osaurusd.inference.events import Completed, Delta, Event, Finished, FinishReason, TokenLogprob
from osaurusd.protocols.openai.render.envelope import Envelope, Usage, usage
from osaurusd.protocols.openai.render.logprobs import ChatLogprobs, chat_logprobs


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. `content` is null if that was calls and no text; the last two are left out if empty."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: tuple[()] = ()
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a chat without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None


class _Answer:
    """One answer as far as it has come."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._tokens: list[TokenLogprob] = []
        self.reason: FinishReason = "stop"

    def add(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._reasoning.append(delta.reasoning)
        self._tokens += delta.logprobs
        for piece in delta.tool_calls:
            if piece.id is not None and piece.name is not None:
                self._calls[piece.index] = ToolCall(id=piece.id, function=CalledFunction(name=piece.name))
            self._calls[piece.index].function.arguments += piece.arguments

    def choice(self, index: int) -> Choice:
        text, calls = "".join(self._text), list(self._calls.values())
        message = AnswerMessage(
            content=None if calls and not text else text,
            reasoning_content="".join(self._reasoning) or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )
        return Choice(index=index, message=message, logprobs=chat_logprobs(self._tokens), finish_reason=self.reason)


async def completion(envelope: Envelope, events: AsyncIterator[Event]) -> Completion:
    """Gather whole answers."""
    answers: defaultdict[int, _Answer] = defaultdict(_Answer)
    async for event in events:
        match event:
            case Delta():
                answers[event.index].add(event)
            case Finished():
                answers[event.index].reason = event.reason
            case Completed():
                done = event
    return Completion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[answer.choice(index) for index, answer in sorted(answers.items())],
        usage=usage(done),
    )
