"""Requests as clients send them, made orders."""

import msgspec

from osaurusd.config import Defaults, Input
from osaurusd.http.json import decode_json
from osaurusd.models.record import GenerationDefaults
from osaurusd.protocols.openai.limits import Limits
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from osaurusd.protocols.openai.translate import chat, completions

TALK = [{"role": "user", "content": "Hello"}]


def chat_order(model=None, defaults=None, **fields):
    """The order for a chat with these fields."""
    request = decode_json(msgspec.json.encode({"messages": TALK, **fields}), ChatRequest)
    Limits(Input()).chat(request)
    return chat.order(request, model or GenerationDefaults(), defaults or Defaults())


def completion_orders(model=None, defaults=None, **fields):
    """The orders for a legacy completion with these fields."""
    request = decode_json(msgspec.json.encode(fields), CompletionRequest)
    Limits(Input()).completion(request)
    return completions.orders(request, model or GenerationDefaults(), defaults or Defaults())


def tool(name="f", **fields):
    """A tool as clients send it."""
    return {"type": "function", "function": {"name": name, **fields}}


def nested(depth):
    """Objects in each other, this many."""
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value
