"""Whether a prompt fits into the context; what is far too long is not tokenized to find that out.

Tokenizing takes about a second and 150 MB for each megabyte of text, and a body may have many megabytes.
"""

from collections.abc import Sequence
from typing import Any

from osaurusd.errors import ContextLengthExceeded

# A text with more characters than this, for each token of the context and at all, is looked at from its beginning
# first; a shorter one is refused with the exact number of its tokens.
CHARACTERS = 8
LEAST_CHARACTERS = 2**18
# So much more of it is looked at then, if that came to few tokens.
_MORE = 4
# What follows a beginning may change its last tokens, but not a quarter of them.
_CERTAIN = 1.25


def check(tokens: Sequence[int], context_length: int | None) -> None:
    """Refuse a prompt that leaves no room for an answer.

    Raises:
        ContextLengthExceeded: with both numbers.
    """
    if context_length is not None and len(tokens) >= context_length:
        raise _exceeded(context_length, f"{len(tokens)}")


def is_large(characters: int, context_length: int | None) -> bool:
    """Whether a text of so many characters is worth a look before it is tokenized."""
    return context_length is not None and characters > _first_look(context_length)


def check_text(tokenizer: Any, text: str, context_length: int | None) -> None:
    """Refuse a text whose beginning alone is longer than the context. A text that is not large is not looked at.

    Raises:
        ContextLengthExceeded: as `check`.
    """
    if context_length is None:
        return
    looked_at = _first_look(context_length)
    while looked_at < len(text):
        tokens = len(tokenizer.encode(text[:looked_at], add_special_tokens=False))
        if tokens > _CERTAIN * context_length:
            raise _exceeded(context_length, f"more than {tokens}")
        looked_at *= _MORE


def _first_look(context_length: int) -> int:
    return max(CHARACTERS * context_length, LEAST_CHARACTERS)


def _exceeded(context_length: int, count: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"this model's context length is {context_length} tokens, but the prompt has {count} tokens "
        "and the output needs room too; shorten the prompt",
        location=("prompt",),
    )
