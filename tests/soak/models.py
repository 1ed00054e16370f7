"""The models that are asked: small, of different architectures, one of them unable to decode sequences together."""

MODELS = ("llama", "qwen3", "gemma2", "llama4")

IN_TURN = "llama4"
"""The one that decodes one sequence after the other."""

CONTEXT_TOKENS = 2048

SURVIVOR = "llama"
"""The one that is pinned and that nobody harms, so that its memory can be watched throughout."""

GREEDY = '{"do_sample": false}'
"""What a request gets that does not say how to choose tokens."""
