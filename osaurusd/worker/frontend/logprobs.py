"""Log-probabilities of tokens, and the text and bytes of each token."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from osaurusd.inference.events import Logprob, TokenLogprob

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_WORD_START = "\u2581"


@dataclass(frozen=True, slots=True)
class Score:
    """A token's natural log-probability, and the most likely tokens at its position, most likely first."""

    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


class TokenTexts:
    """The text and bytes of each token of a vocabulary, computed on first use. Safe on any thread.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[int, tuple[str, list[int]]] = {}

    def __getitem__(self, token: int) -> tuple[str, list[int]]:
        """Return text and bytes. Bytes that are not a whole character become U+FFFD; unused ids have neither."""
        if token not in self._cache:
            raw = self._bytes(token)
            self._cache[token] = raw.decode("utf-8", "replace"), list(raw)
        return self._cache[token]

    def logprob(self, token: int, logprob: float) -> Logprob:
        text, raw = self[token]
        return Logprob(text=text, bytes=raw, logprob=logprob)

    def token_logprob(self, token: int, score: Score | None) -> TokenLogprob:
        """Build the log-probability event of a token; `score` is None for the first token of a prompt."""
        text, raw = self[token]
        if score is None:
            return TokenLogprob(text=text, bytes=raw)
        top = [self.logprob(*pair) for pair in score.top]
        return TokenLogprob(text=text, bytes=raw, logprob=score.logprob, top=top)

    def token_logprobs(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> list[TokenLogprob]:
        """Build the log-probability events of tokens, each with its score."""
        return [self.token_logprob(token, score) for token, score in zip(tokens, scores, strict=True)]

    def _bytes(self, token: int) -> bytes:
        entry = self._tokenizer.convert_ids_to_tokens(token)
        if entry is None:
            return b""
        if token in self._added_tokens:
            return str(entry).encode()
        if "ByteLevel" in self._decoder:
            return b"".join(_decode_byte_level(character) for character in entry)
        if entry.startswith("<0x") and entry.endswith(">") and "ByteFallback" in self._decoder:
            return bytes([int(entry[3:-1], 16)])
        if "ByteFallback" in self._decoder or "Metaspace" in self._decoder:
            return str(entry).replace(_WORD_START, " ").encode()
        return str(self._tokenizer.decode([token])).encode()

    @cached_property
    def _added_tokens(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _decoder(self) -> str:
        """The description of the decoder in the tokenizers library; "" if the tokenizer does not use the library."""
        return repr(self._tokenizer.backend_tokenizer.decoder) if self._tokenizer.is_fast else ""


def _decode_byte_level(character: str) -> bytes:
    byte = _BYTE_OF_CHARACTER.get(character)
    return character.encode() if byte is None else bytes([byte])


class TokenAligner:
    """Assigns scored tokens to the text that is emitted.

    Tokens arrive with the number of characters they added. Later, the same characters are emitted or dropped, in the
    same order. A token without characters, such as one byte of a character, belongs to the next token that has some.

    Args:
        texts: texts of the vocabulary.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._pending: deque[_PendingToken] = deque()
        self._end = 0
        self._position = 0
        self._emitted = True

    def add(self, token: int, score: Score | None, characters: int) -> None:
        self._pending.append(_PendingToken(token, score, self._end, self._end + characters))
        self._end += characters

    def extend(self, characters: int) -> None:
        """Count characters that the detokenizer had held back as the last token's."""
        self._end += characters
        if self._pending:
            self._pending[-1].end = self._end

    def drop(self, characters: int) -> None:
        """Drop the next characters, and with them every token that has one of them."""
        self._advance(characters, emitted=False)

    def emit(self, characters: int) -> list[TokenLogprob]:
        """Emit the next characters, and return the tokens that are complete with them."""
        return self._advance(characters, emitted=True)

    def _advance(self, characters: int, *, emitted: bool) -> list[TokenLogprob]:
        if not characters:
            return []
        self._position += characters
        self._emitted = self._emitted and emitted
        complete = []
        while self._pending and self._pending[0].is_complete(self._position):
            first = self._pending.popleft()
            if self._emitted:
                complete.append(self._texts.token_logprob(first.token, first.score))
            self._emitted = emitted or first.end == self._position
        return complete


@dataclass(slots=True)
class _PendingToken:
    """A token whose characters are those from `start` to `end` of the sequence."""

    token: int
    score: Score | None
    start: int
    end: int

    def is_complete(self, position: int) -> bool:
        return self.start < position and self.end <= position
