"""Prompts of an exact number of tokens, each beginning like none before it, so that nothing of it is cached."""

import random
from pathlib import Path
from typing import Any

from jinja2 import Environment
from tokenizers import Tokenizer

Messages = list[dict[str, str]]

COUNT = "Count from one to five hundred in words, one number a line, and leave none out."
"""A task with a long answer."""

# Leading words: chosen from thousands, so that two prompts hardly ever begin alike.
_OPENING = 6


class Prompts:
    """Prompts for the model in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._template = Environment().from_string((folder / "chat_template.jinja").read_text())
        # Not seeded: prompts of an earlier run must be new to whatever kept them.
        self._random = random.Random()
        self._words = self._find_words()

    def task(self) -> Messages:
        """A short prompt with a long answer."""
        return [_user(f"{self._text(_OPENING)}. {COUNT}")]

    def question(self, system: str) -> Messages:
        """A short question under the system message `system`."""
        return [_system(system), _user(f"{self._text(_OPENING)}?")]

    def system(self, tokens: int) -> str:
        """A system message with which a prompt's first `tokens` tokens end."""
        return self._text(tokens - len(self._encode([_system("")], generate=False)))

    def exactly(self, tokens: int) -> Messages:
        """A prompt of `tokens` tokens, the template's own included."""
        return [_user(self._text(tokens - self.count([_user("")])))]

    def ids(self, messages: Messages) -> list[int]:
        """The tokens that a server makes of `messages`."""
        return self._encode(messages, generate=True)

    def count(self, messages: Messages) -> int:
        return len(self.ids(messages))

    def _encode(self, messages: Messages, *, generate: bool) -> list[int]:
        rendered = self._template.render(messages=messages, add_generation_prompt=generate)
        ids: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False).ids
        return ids

    def _text(self, words: int) -> str:
        """A text of as many tokens as words."""
        return " ".join(self._random.choices(self._words, k=words))

    def _find_words(self) -> list[str]:
        """Words that are one token wherever in a text they stand."""
        vocabulary: dict[str, Any] = self._tokenizer.get_vocab()
        # Byte-level vocabularies write a leading space as Ġ.
        return sorted(
            word
            for word in vocabulary
            if word.isascii() and word.islower() and f"Ġ{word}" in vocabulary and word.isalpha() and len(word) > 2
        )


def _system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
