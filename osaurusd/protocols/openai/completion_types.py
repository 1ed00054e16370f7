"""The bodies of `POST /completions`: requests, responses and the chunks of a stream."""

from typing import Annotated, Literal

import msgspec

from osaurusd.inference.events import FinishReason
from osaurusd.protocols.openai.common import MAX_TOKEN_ID, Logprobs, RequestBody, Tokens, Usage
from osaurusd.protocols.openai.logprobs import CompletionLogprobs

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]


class CompletionRequest(RequestBody, frozen=True, kw_only=True):
    """The body of a completion request.

    `prompt` is a text, a list of token ids, or a list of such prompts. `logprobs` is the number of alternatives to
    report for each token.
    """

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    suffix: str | None = None
    max_tokens: Tokens | None = None
    logprobs: Logprobs | None = None
    echo: bool | None = None
    best_of: int | None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionHead(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that responses and chunks have in common."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str


class Completion(CompletionHead, frozen=True, kw_only=True):
    """The response to a completion request."""

    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(CompletionHead, frozen=True, kw_only=True):
    """One chunk of a streamed completion. With `stream_options.include_usage`, the last one has the usage."""

    choices: list[CompletionChoice]
    usage: Usage | None = None
