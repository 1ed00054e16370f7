"""The models of the soak: tiny, of different architectures."""

MODELS = ("llama", "qwen3", "gemma2", "llama4")

UNBATCHED = "llama4"
"""This model's caches cannot be merged, so it decodes one sequence at a time."""

SURVIVOR = "llama"
"""This model is pinned and never killed or unloaded, so that its memory can be observed throughout."""

CONTEXT_TOKENS = 2048

GENERATION_CONFIG = '{"do_sample": false}'
"""Requests without sampling parameters are greedy."""
