"""Tokens as text and bytes, and how likely the model held them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from osaurusd.inference.events import Logprob, TokenLogprob

_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
_WORD_START = "\u2581"


@dataclass(frozen=True, slots=True)
class Score:
    """The natural logarithm of a token's probability, and the likeliest tokens at its place, likeliest first."""

    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


class TokenTexts:
    """What each token of a vocabulary stands for. Entries are made when they are first asked for, on any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def __getitem__(self, token: int) -> tuple[str, list[int]]:
        """Text and bytes; bytes that are no whole character read as U+FFFD. Ids that mean nothing have neither."""
        if token not in self._known:
            raw = self._bytes(token)
            self._known[token] = raw.decode("utf-8", "replace"), list(raw)
        return self._known[token]

    def likelihood(self, token: int, logprob: float) -> Logprob:
        text, raw = self[token]
        return Logprob(text=text, bytes=raw, logprob=logprob)

    def scored(self, token: int, score: Score | None) -> TokenLogprob:
        """`score` is None for a token that nothing was before."""
        text, raw = self[token]
        if score is None:
            return TokenLogprob(text=text, bytes=raw)
        top = [self.likelihood(*pair) for pair in score.top]
        return TokenLogprob(text=text, bytes=raw, logprob=score.logprob, top=top)

    def _bytes(self, token: int) -> bytes:
        entry = self._tokenizer.convert_ids_to_tokens(token)
        if entry is None:
            return b""
        if token in self._added:
            return str(entry).encode()
        if "ByteLevel" in self._decoder:
            return b"".join(_byte_level(character) for character in entry)
        if entry.startswith("<0x") and entry.endswith(">") and "ByteFallback" in self._decoder:
            return bytes([int(entry[3:-1], 16)])
        if "ByteFallback" in self._decoder or "Metaspace" in self._decoder:
            return str(entry).replace(_WORD_START, " ").encode()
        return str(self._tokenizer.decode([token])).encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _decoder(self) -> str:
        """How the tokenizers library says that it turns entries into text; "" where it is not used."""
        return repr(self._tokenizer.backend_tokenizer.decoder) if self._tokenizer.is_fast else ""


def _byte_level(character: str) -> bytes:
    byte = _BYTE_OF.get(character)
    return character.encode() if byte is None else bytes([byte])


class Ledger:
    """Which scored tokens belong to the text that is told.

    Tokens come with the characters they added; those are then, in the same order, told or dropped. A token without
    characters of its own, such as one of the bytes of a character, goes with the next one that has some.

    Args:
        texts: of the vocabulary.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._waiting: deque[_Waiting] = deque()
        self._end = 0
        self._settled = 0
        self._told = True

    def add(self, token: int, score: Score | None, characters: int) -> None:
        self._waiting.append(_Waiting(token, score, self._end, self._end + characters))
        self._end += characters

    def extend(self, characters: int) -> None:
        """Characters that the detokenizer had kept back count as the last token's."""
        self._end += characters
        if self._waiting:
            self._waiting[-1].end = self._end

    def drop(self, characters: int) -> None:
        """The next characters are not told, and with them no token that has some of them."""
        self._settle(characters, told=False)

    def tell(self, characters: int) -> list[TokenLogprob]:
        """The next characters are told; the tokens that are complete with them."""
        return self._settle(characters, told=True)

    def _settle(self, characters: int, *, told: bool) -> list[TokenLogprob]:
        if not characters:
            return []
        self._settled += characters
        self._told = self._told and told
        complete = []
        while self._waiting and self._waiting[0].settled(self._settled):
            first = self._waiting.popleft()
            if self._told:
                complete.append(self._texts.scored(first.token, first.score))
            self._told = told or first.end == self._settled
        return complete


@dataclass(slots=True)
class _Waiting:
    """A token whose characters are those from `start` to `end` of the sequence."""

    token: int
    score: Score | None
    start: int
    end: int

    def settled(self, position: int) -> bool:
        return self.start < position and self.end <= position


def scored(texts: TokenTexts, tokens: Sequence[int], scores: Sequence[Score | None]) -> list[TokenLogprob]:
    """Tokens with their scores, one for each."""
    return [texts.scored(token, score) for token, score in zip(tokens, scores, strict=True)]
