"""Context length checks. A prompt that is far too long is rejected before all of it is tokenized.

Tokenizing takes about 1 s and 150 MB for each megabyte of text, and a request body can hold many megabytes.
"""

from typing import Any

from osaurusd.errors import ContextLengthExceeded
from osaurusd.inference.request import Location

# A text is checked by its beginning first if it has more characters than this per token of the context, and more
# than MIN_LARGE_CHARACTERS. A shorter text is tokenized at once and rejected with its exact token count.
LARGE_CHARACTERS_PER_TOKEN = 8
MIN_LARGE_CHARACTERS = 2**18

_GROWTH = 4
# The text after a cut can change how the last tokens before it are split, but never by a quarter of all tokens.
_SAFETY_FACTOR = 1.25


def check_length(
    tokens: int, context_length: int | None, location: Location = ("prompt",), *, image_tokens: int = 0
) -> None:
    """Reject a prompt that leaves no room for output.

    Args:
        tokens: its length.
        context_length: the model's context length.
        location: the part of the request that makes it too long.
        image_tokens: how many of the tokens stand for images.

    Raises:
        ContextLengthExceeded: with the token count and the context length.
    """
    if context_length is not None and tokens >= context_length:
        raise _exceeded(context_length, f"{tokens}", location, image_tokens)


def is_large(characters: int, context_length: int | None) -> bool:
    """Whether a text of this many characters must pass `check_text` before it is tokenized."""
    return context_length is not None and characters > _initial_cut(context_length)


def check_text(tokenizer: Any, text: str, context_length: int | None, location: Location = ("prompt",)) -> None:
    """Reject a large text whose beginning alone exceeds the context length. Accepts every other text.

    Raises:
        ContextLengthExceeded: with a lower bound of the token count, and the context length.
    """
    if context_length is None:
        return
    cut = _initial_cut(context_length)
    while cut < len(text):
        count = len(tokenizer.encode(text[:cut], add_special_tokens=False))
        if count > _SAFETY_FACTOR * context_length:
            raise _exceeded(context_length, f"more than {count}", location)
        cut *= _GROWTH


def _initial_cut(context_length: int) -> int:
    return max(LARGE_CHARACTERS_PER_TOKEN * context_length, MIN_LARGE_CHARACTERS)


def _exceeded(context_length: int, count: str, location: Location, image_tokens: int = 0) -> ContextLengthExceeded:
    images = f" ({image_tokens} of them for images)" if image_tokens else ""
    advice = "send fewer images, or shorten the prompt" if image_tokens else "shorten the prompt"
    return ContextLengthExceeded(
        f"the prompt has {count} tokens{images}, but this model's context length is {context_length} tokens, output "
        f"included; {advice}",
        location=location,
    )
