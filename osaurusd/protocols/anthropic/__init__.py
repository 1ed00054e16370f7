"""Anthropic's API: messages, token counts, and the list of models."""
