"""Stream a chat completion: the request, its chunks, and the answer that they add up to."""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from osaurusctl.client import Client
from osaurusctl.errors import InvalidReply, error_from_body
from osaurusd.wire.errors import ErrorBody

Message = dict[str, Any]


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The model and the parameters of every request of a conversation.

    `response_format` is that of the API.
    """

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None

    def build_request(self, messages: list[Message]) -> dict[str, Any]:
        """Build the body of a chat completion. Parameters that are not set are left to the daemon."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        parameters = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "response_format": self.response_format,
        }
        return {
            "model": self.model,
            "messages": system + messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in parameters.items() if value is not None},
        }


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()
    finish_reason: str | None = None


class PromptProgress(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens have been processed."""

    total: int
    processed: int


class ChatChunk(msgspec.Struct, frozen=True):
    """The fields of a chat completion chunk that the CLI uses."""

    model: str | None = None
    choices: list[ChunkChoice] = []
    usage: dict[str, Any] | None = None
    prompt_progress: PromptProgress | None = None
    error: ErrorBody | None = None

    @property
    def text(self) -> str:
        return "".join(choice.delta.content or "" for choice in self.choices)

    @property
    def reasoning(self) -> str:
        return "".join(choice.delta.reasoning_content or "" for choice in self.choices)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Time to first token and decode speed, as the client sees them; None if there were too few tokens."""

    ttft_seconds: float | None
    tokens_per_second: float | None


class Answer(msgspec.Struct):
    """The answer received so far. `run --json` prints it; empty optional fields are absent."""

    model: str
    content: str = ""
    reasoning: str | UnsetType = UNSET
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    speed: Speed | UnsetType = UNSET

    def add(self, chunk: ChatChunk) -> None:
        self.content += chunk.text
        if chunk.reasoning:
            self.reasoning = (self.reasoning or "") + chunk.reasoning
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason


class Stopwatch:
    """Measures the speed of one answer, from its creation."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started_at = clock()
        self._first_at: float | None = None
        self._last_at = 0.0

    def add(self, chunk: ChatChunk) -> None:
        if chunk.text or chunk.reasoning:
            self._last_at = self._clock()
            self._first_at = self._last_at if self._first_at is None else self._first_at

    def measure(self, answer: Answer) -> Speed:
        if self._first_at is None:
            return Speed(ttft_seconds=None, tokens_per_second=None)
        seconds = self._last_at - self._first_at
        tokens = (answer.usage or {}).get("completion_tokens", 0)
        rate = (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None
        return Speed(ttft_seconds=self._first_at - self._started_at, tokens_per_second=rate)


def stream_chat(client: Client, request: dict[str, Any]) -> Generator[ChatChunk, None, None]:
    """Stream the chunks of a chat completion. Closing the generator cancels the request.

    Raises:
        CliError: the request failed, before or during the stream.
    """
    with contextlib.closing(client.chat(request)) as objects:
        for data in objects:
            try:
                chunk = msgspec.json.decode(data, type=ChatChunk)
            except msgspec.DecodeError as error:
                raise InvalidReply(str(error)) from error
            if chunk.error:
                raise error_from_body(chunk.error)
            yield chunk
