"""Prompts for models that were trained to fill in what is missing between two texts."""

from typing import Any, NamedTuple

from osaurusd.errors import UnsupportedParameter


class Markers(NamedTuple):
    """The tokens of one family of models: each comes before its part of the prompt, the last one before the answer."""

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool = False


FAMILIES = (
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite 3
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Markers("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # CodeLlama
    Markers("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    Markers("[PREFIX]", "[SUFFIX]", None, suffix_first=True),  # Codestral
)


def encode(tokenizer: Any, prefix: str, suffix: str) -> list[int]:
    """The tokens after which the model writes what belongs between `prefix` and `suffix`.

    Raises:
        UnsupportedParameter: the vocabulary has no tokens for that.
    """
    vocabulary = tokenizer.get_vocab()
    for family in FAMILIES:
        if all(marker in vocabulary for marker in family[:3] if marker is not None):
            return [*tokenizer.encode(""), *_parts(tokenizer, vocabulary, family, prefix, suffix)]
    raise UnsupportedParameter(
        "this model has no fill-in-the-middle tokens; leave the suffix out or use a model that was trained for it",
        location=("prompt", "suffix"),
    )


def _parts(tokenizer: Any, vocabulary: dict[str, int], family: Markers, prefix: str, suffix: str) -> list[int]:
    before = [vocabulary[family.prefix], *tokenizer.encode(prefix, add_special_tokens=False)]
    after = [vocabulary[family.suffix], *tokenizer.encode(suffix, add_special_tokens=False)]
    parts = [*after, *before] if family.suffix_first else [*before, *after]
    return parts if family.middle is None else [*parts, vocabulary[family.middle]]
