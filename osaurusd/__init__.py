"""osaurusd: an always-on daemon that serves OpenAI-compatible endpoints over MLX models."""

__version__ = "0.2.0"
