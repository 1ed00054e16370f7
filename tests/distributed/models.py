"""Tiny models that can be split, and requests with the tokens that one host generates for them."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.models import NO_END_TOKEN, make_tiny

TENSOR, PIPELINE = "tiny-llama", "tiny-qwen2"
"""Models for each split: llama has no pipeline in mlx_lm, and qwen2 has both."""

# Heads and the width of the MLP can be divided by 2 and by 3. Each layer costs two exchanges between the ranks.
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "eos_token_id": NO_END_TOKEN,
}

PROMPTS = 20
TOKENS = 6

MIN_MARGIN = 1e-3
"""Ranks add partial sums in another order than one host, which changes logits by about 1e-6."""

WORDS = (
    "amber",
    "basin",
    "copper",
    "delta",
    "ember",
    "forest",
    "garnet",
    "harbor",
    "island",
    "jasper",
    "kelp",
    "lagoon",
)


@dataclass(frozen=True)
class Reference:
    """A prompt with the tokens that one host generates for it, and their log probabilities."""

    prompt: str
    tokens: list[str]
    logprobs: list[float]


def make_models(folder: Path, tokenizer: Path, *names: str) -> None:
    """Create models in a folder for models."""
    for name in names:
        model_type, layers = ("llama", 2) if name == TENSOR else ("qwen2", 3)
        make_tiny(folder / name, tokenizer, model_type=model_type, num_hidden_layers=layers, **SHAPE)


def connect(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="not-needed", max_retries=0, timeout=120)


def complete(client: OpenAI, model: str, prompt: str, tokens: int = TOKENS) -> Any:
    """Return the choice that answers a prompt greedily."""
    response = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    return response.choices[0]


def create_references(client: OpenAI, model: str, *, seed: int = 0, count: int = PROMPTS) -> list[Reference]:
    """Send prompts to a model that runs on one host; keep those whose tokens do not depend on rounding."""
    rng = random.Random(seed)
    prompts = [" ".join(rng.choices(WORDS, k=rng.choice((3, 8, 30)))) for _ in range(count + count // 2)]
    references = []
    for prompt, choice in zip(prompts, complete_all(client, model, prompts), strict=True):
        content = choice.logprobs.content
        margins = [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in content]
        if min(margins) > MIN_MARGIN:
            references.append(Reference(prompt, *tokens_of(choice)))
    assert len(references) >= count
    return references[:count]


def complete_all(client: OpenAI, model: str, prompts: Sequence[str]) -> list[Any]:
    """Send all prompts at once."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(lambda prompt: complete(client, model, prompt), prompts))


def check_references(client: OpenAI, model: str, references: Sequence[Reference]) -> None:
    """Send all prompts at once, and compare the tokens."""
    choices = complete_all(client, model, [reference.prompt for reference in references])
    for reference, choice in zip(references, choices, strict=True):
        check_choice(reference, choice)


def check_choice(reference: Reference, choice: Any) -> None:
    tokens, logprobs = tokens_of(choice)
    assert reference.tokens == tokens
    assert pytest.approx(reference.logprobs, abs=1e-3) == logprobs


def tokens_of(choice: Any) -> tuple[list[str], list[float]]:
    content = choice.logprobs.content
    return [token.token for token in content], [token.logprob for token in content]
