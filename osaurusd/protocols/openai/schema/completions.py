"""The body of `POST /completions`, OpenAI's legacy endpoint."""

from typing import Annotated

import msgspec

from osaurusd.protocols.openai.schema.base import MAX_TOKEN_ID, MAX_TOKENS, Logprobs, Request

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]


class CompletionRequest(Request, frozen=True, kw_only=True):
    """The body. `prompt` is a text, token ids, or a list of such; `logprobs` is how many likeliest tokens to tell."""

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Logprobs | None = None
    echo: bool | None = None
    best_of: int | None = None
