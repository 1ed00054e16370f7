"""What mlx_lm can load, judged by a model's config and the names of its files. Pure."""

from collections.abc import Callable, Container, Mapping
from typing import Any

from osaurusd.models import architectures, describe

STANDARD_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
OWN_TOKENIZERS = ("tiktoken.model", "tokenizer_config.json")


def refusal(config: Mapping[str, Any], names: Container[str], tokenizer_needs_code: Callable[[], bool]) -> str | None:
    """Why a model can never be served, whatever else is downloaded of it; None if nothing is known against it.

    Args:
        config: its `config.json`.
        names: its files.
        tokenizer_needs_code: asked only if no file is a tokenizer by itself.
    """
    kind = describe.architecture(config)
    if kind not in architectures.supported():
        return f"mlx_lm has no architecture `{kind}`"
    if config.get("model_file") is not None:
        return "it needs code of its own (`model_file`), which is never run"
    if not any(name in names for name in STANDARD_TOKENIZERS) and tokenizer_needs_code():
        return "its tokenizer needs code of its own (`auto_map`), which is never run"
    return None


def has_tokenizer(names: Container[str]) -> bool:
    """Whether there is a file that a tokenizer can be made from."""
    return any(name in names for name in (*STANDARD_TOKENIZERS, *OWN_TOKENIZERS))
