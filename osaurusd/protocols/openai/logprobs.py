"""Log-probabilities in OpenAI's two formats: that of chat completions and that of legacy completions."""

import codecs
from collections.abc import Sequence

import msgspec

from osaurusd.inference import events as neutral

MIN_LOGPROB = -9999.0
"""OpenAI's value for a token that is practically impossible. JSON has no infinity."""


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Four columns with one row per token; `text_offset` counts characters of the choice's text.

    The first token of an echoed prompt has no log-probability, so its row has nulls.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[neutral.TokenLogprob]) -> ChatLogprobs | None:
    """Render the tokens of a choice or a delta; None if there are none."""
    return ChatLogprobs(content=[_token(token) for token in tokens]) if tokens else None


def completion_logprobs(tokens: Sequence[neutral.TokenLogprob], offset: int) -> CompletionLogprobs | None:
    """Render the tokens of a piece of text that starts at character `offset`; None if there are none."""
    if not tokens:
        return None
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[None if token.logprob is None else _top(token) for token in tokens],
        text_offset=_offsets(tokens, offset),
    )


def join_completion_logprobs(pieces: Sequence[CompletionLogprobs]) -> CompletionLogprobs | None:
    """Concatenate the columns of all pieces; None if there are none."""
    if not pieces:
        return None
    columns = CompletionLogprobs.__struct_fields__
    return CompletionLogprobs(**{name: [row for piece in pieces for row in getattr(piece, name)] for name in columns})


def _token(token: neutral.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token=token.text,
        logprob=_finite(token.logprob),
        bytes=token.bytes,
        top_logprobs=[TopLogprob(token=top.text, logprob=_finite(top.logprob), bytes=top.bytes) for top in token.top],
    )


def _finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)


def _top(token: neutral.TokenLogprob) -> dict[str, float]:
    """Return the most likely tokens and the sampled one. Of tokens with the same text, the most likely one counts."""
    logprobs: dict[str, float] = {}
    for each in (*token.top, token):
        logprobs.setdefault(each.text, _finite(each.logprob))
    return logprobs


def _offsets(tokens: Sequence[neutral.TokenLogprob], offset: int) -> list[int]:
    # A character may span several tokens; it counts where its last byte is.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(bytes(token.bytes)))
    return offsets
