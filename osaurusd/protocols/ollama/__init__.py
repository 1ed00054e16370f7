"""Ollama's API: chat, generate, the lists of models, and their management."""
