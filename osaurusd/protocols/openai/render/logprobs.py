"""How likely tokens were, in OpenAI's two shapes: that of chats and that of legacy completions."""

import codecs
from collections.abc import Sequence

import msgspec

from osaurusd.inference import events as neutral

UNLIKELY = -9999.0
"""What OpenAI says in place of a log-probability too small to tell. JSON has no infinity."""


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class LegacyLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Four columns, a row for each token; `text_offset` counts characters of the choice's text.

    Nothing is known of the first token of an echoed prompt, so it has nulls.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[neutral.TokenLogprob]) -> ChatLogprobs | None:
    """The tokens of an answer or a piece of it; None if there are none."""
    return ChatLogprobs(content=[_token(token) for token in tokens]) if tokens else None


def _token(token: neutral.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token=token.text,
        logprob=_finite(token.logprob),
        bytes=token.bytes,
        top_logprobs=[TopLogprob(token=one.text, logprob=_finite(one.logprob), bytes=one.bytes) for one in token.top],
    )


def _finite(logprob: float | None) -> float:
    return UNLIKELY if logprob is None else max(logprob, UNLIKELY)


def legacy_logprobs(tokens: Sequence[neutral.TokenLogprob], offset: int) -> LegacyLogprobs | None:
    """The tokens of a piece of text that begins after `offset` characters; None if there are none."""
    if not tokens:
        return None
    return LegacyLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[None if token.logprob is None else _likeliest(token) for token in tokens],
        text_offset=_offsets(tokens, offset),
    )


def _likeliest(token: neutral.TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one. Of several with the same text the likeliest one stands for all."""
    found: dict[str, float] = {}
    for one in (*token.top, token):
        found.setdefault(one.text, _finite(one.logprob))
    return found


def _offsets(tokens: Sequence[neutral.TokenLogprob], offset: int) -> list[int]:
    # A character may be spread over several tokens; it counts where its last byte is.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(bytes(token.bytes)))
    return offsets
