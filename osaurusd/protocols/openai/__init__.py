"""OpenAI's API: chat completions, legacy completions and the list of models."""
