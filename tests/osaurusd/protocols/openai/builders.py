"""Requests as clients send them, and the generation requests that they become."""

import msgspec

from osaurusd.config import Input
from osaurusd.http.json import decode_json
from osaurusd.inference import limits
from osaurusd.inference.images import ImageCollector
from osaurusd.protocols.openai import chat, completions
from osaurusd.protocols.openai.chat_types import ChatRequest
from osaurusd.protocols.openai.completion_types import CompletionRequest
from tests.osaurusd.protocols.helpers import request_defaults

MESSAGES = [{"role": "user", "content": "Hello"}]


def decode_chat(**fields):
    """Decode a chat request."""
    return decode_json(msgspec.json.encode({"messages": MESSAGES, **fields}), ChatRequest)


def decode_completion(**fields):
    """Decode a completion request."""
    return decode_json(msgspec.json.encode(fields), CompletionRequest)


def parse_chat(config=None, **fields):
    """Return the generation request for a chat."""
    return chat.build_request(decode_chat(**fields), request_defaults(config), ImageCollector())


def parse_completion(config=None, **fields):
    """Return the generation requests for a completion."""
    return completions.build_requests(decode_completion(**fields), request_defaults(config))


def check_chat(maxima=None, **fields):
    """Parse a chat and check its limits, with errors named as the handler names them."""
    body = decode_chat(**fields)
    with chat.field_paths(body).named():
        limits.check_request(chat.build_request(body, request_defaults(), ImageCollector()), maxima or Input())


def check_completion(maxima=None, **fields):
    """Parse a completion and check its limits, with errors named as the handler names them."""
    body = decode_completion(**fields)
    with completions.field_paths(body).named():
        for request in completions.build_requests(body, request_defaults()):
            limits.check_request(request, maxima or Input())


def tool(name="f", **fields):
    """Build a tool."""
    return {"type": "function", "function": {"name": name, **fields}}
