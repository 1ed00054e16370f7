"""Tokenizers that Mistral AI published."""

from pathlib import Path

from tests import packages

PACKAGE = "mistral-common==1.13.1"
SENTENCE_PIECE = "mistral_instruct_tokenizer_240323.model.v3"
TEKKEN = "tekken_240911.json"


def fetch(name: str, cache: Path = packages.CACHE) -> Path:
    """Return the path of a file of the package. Download it first if necessary."""
    return packages.fetch(PACKAGE, f"mistral_common/data/{name}", cache / name, checksums={})
