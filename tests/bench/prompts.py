"""Prompts with an exact number of tokens. Each starts with different words, so that no server has a prefix cached."""

import random
from pathlib import Path
from typing import Any

from jinja2 import Environment
from tokenizers import Tokenizer

Messages = list[dict[str, Any]]

LONG_TASK = "Count from one to five hundred in words, one number a line, and leave none out."
"""A task with a long output."""

# Random words at the beginning, from a vocabulary of thousands, make prompts practically unique.
OPENING_WORDS = 6


class Prompts:
    """Creates prompts for the model in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._template = Environment().from_string((folder / "chat_template.jinja").read_text())
        # Not seeded: a server may still have the prompts of an earlier run.
        self._random = random.Random()
        self._words = self._single_token_words()

    def task(self) -> Messages:
        """Create a short prompt with a long output."""
        return [user_message(f"{self._text(OPENING_WORDS)}. {LONG_TASK}")]

    def question(self, system: str) -> Messages:
        """Create a short question after a system message."""
        return [system_message(system), user_message(f"{self._text(OPENING_WORDS)}?")]

    def system(self, tokens: int) -> str:
        """Create a system message that ends at token `tokens` of a prompt."""
        return self._text(tokens - len(self._encode([system_message("")], add_generation_prompt=False)))

    def exactly(self, tokens: int) -> Messages:
        """Create a prompt of `tokens` tokens, including those of the chat template."""
        return [user_message(self._text(tokens - self.count([user_message("")])))]

    def token_ids(self, messages: Messages) -> list[int]:
        return self._encode(messages, add_generation_prompt=True)

    def count(self, messages: Messages) -> int:
        return len(self.token_ids(messages))

    def _encode(self, messages: Messages, *, add_generation_prompt: bool) -> list[int]:
        rendered = self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        ids: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False).ids
        return ids

    def _text(self, tokens: int) -> str:
        """Create a text with one word per token."""
        return " ".join(self._random.choices(self._words, k=tokens))

    def _single_token_words(self) -> list[str]:
        """Return words that are one token, at the beginning of a text and after a space."""
        vocabulary: dict[str, Any] = self._tokenizer.get_vocab()
        # Byte-level vocabularies represent a leading space as Ġ.
        return sorted(
            word
            for word in vocabulary
            if word.isascii() and word.islower() and f"Ġ{word}" in vocabulary and word.isalpha() and len(word) > 2
        )


def system_message(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def user_message(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
