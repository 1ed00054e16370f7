"""Tells a model in its prompt which format its output is restricted to.

A grammar can only rule out tokens. A model that does not know the schema is forced into keys and values that it did not
intend, and may never end a string.
"""

from typing import Any

import msgspec

from osaurusd.inference.request import (
    ChatPrompt,
    JsonObject,
    JsonSchema,
    OutputConstraint,
    TextChoice,
)
from osaurusd.worker.frontend.fallback_tools import add_to_system
from osaurusd.worker.frontend.template_tools import dump_json

_SCHEMA = "Answer with JSON on one line, and nothing else. It must conform to this JSON schema:\n{schema}"
_OBJECT = "Answer with a JSON object, and nothing else."
_CHOICES = "Answer with one of these texts, and nothing else: {choices}"

_QUOTES = "\"'`"


def describe_format(chat: ChatPrompt, constraint: OutputConstraint | None) -> ChatPrompt:
    """Add a description of the format to the system message, unless the messages describe it already."""
    texts = [message.text for message in chat.messages]
    match constraint:
        case JsonObject(describe=True) if not any("json" in text.lower() for text in texts):
            return _add_to_system(chat, _OBJECT)
        case JsonSchema(describe=True, schema=schema) if schema and not _is_described(schema, texts):
            return _add_to_system(chat, _SCHEMA.format(schema=dump_json(schema)))
        case TextChoice(describe=True, choices=choices) if not any(all(c in text for c in choices) for text in texts):
            return _add_to_system(chat, _CHOICES.format(choices=dump_json(choices)))
    return chat


def _is_described(schema: dict[str, Any], texts: list[str]) -> bool:
    """Whether a message contains the schema, or mentions all of its properties in quotes."""
    properties = schema.get("properties")
    if isinstance(properties, dict) and properties:
        return any(all(_is_quoted(name, text) for name in properties) for text in texts)
    compact = "".join(dump_json(schema).split())
    return any(compact in "".join(text.split()) for text in texts)


def _is_quoted(name: str, text: str) -> bool:
    return any(f"{quote}{name}{quote}" in text for quote in _QUOTES)


def _add_to_system(chat: ChatPrompt, text: str) -> ChatPrompt:
    return msgspec.structs.replace(chat, messages=add_to_system(chat.messages, text))
