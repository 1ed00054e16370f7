"""`python -m tests.mac.large_heads FOLDER TOKENIZER`: create a model with random weights and heads of 256 values."""

import sys
from pathlib import Path

from tests.models import make_tiny

CONTEXT_TOKENS = 32_768


def main(folder: str, tokenizer: str) -> None:
    make_tiny(
        Path(folder),
        Path(tokenizer),
        hidden_size=512,
        head_dim=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
