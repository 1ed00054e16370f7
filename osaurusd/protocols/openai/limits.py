"""How much a request may have of anything: the limits of `[input]`, each refused with its JSON path and its key.

What is of the wrong type or out of range is found while decoding; what is here can be configured.
"""

from collections.abc import Sequence, Sized
from typing import Any

import msgspec

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.protocols.openai.schema.base import Request
from osaurusd.protocols.openai.schema.chat import ChatRequest, Message, ToolCall
from osaurusd.protocols.openai.schema.completions import CompletionRequest

UNITS = {
    "max_messages": "messages",
    "max_parts": "parts",
    "max_tool_calls": "calls",
    "max_name_length": "characters",
    "max_stop_strings": "strings",
    "max_stop_length": "characters",
    "max_tools": "tools",
    "max_schema_bytes": "bytes as JSON",
    "max_schema_depth": "levels",
    "max_choices": "answers",
    "max_top_logprobs": "tokens",
    "max_logit_bias": "entries",
    "max_prompts": "prompts",
}
"""What each limit counts."""


class Limits:
    """Holds requests to the limits in force.

    Every method raises InvalidRequest, which names the field, what it has, and the limit with its key.
    """

    def __init__(self, limits: Input) -> None:
        self._limits = limits

    def chat(self, request: ChatRequest) -> None:
        self._common(request)
        self._count(request.messages, "messages", "max_messages")
        for at, message in enumerate(request.messages):
            self._message(message, f"messages[{at}]")
        self._at_most(request.top_logprobs, "top_logprobs", "max_top_logprobs")
        self._tools(request)
        if request.response_format and request.response_format.json_schema:
            self._object(request.response_format.json_schema.schema, "response_format.json_schema.schema")
        self._object(request.chat_template_kwargs, "chat_template_kwargs")

    def completion(self, request: CompletionRequest) -> None:
        self._common(request)
        self._at_most(request.logprobs, "logprobs", "max_top_logprobs")
        if isinstance(request.prompt, list) and not (request.prompt and isinstance(request.prompt[0], int)):
            self._count(request.prompt, "prompt", "max_prompts")

    def _common(self, request: Request) -> None:
        self._count(request.model, "model", "max_name_length")
        self._at_most(request.n, "n", "max_choices")
        self._count(request.logit_bias, "logit_bias", "max_logit_bias")
        if isinstance(request.stop, str):
            self._count(request.stop, "stop", "max_stop_length")
        else:
            self._count(request.stop, "stop", "max_stop_strings")
            self._lengths(request.stop or [], "stop", "max_stop_length")

    def _message(self, message: Message, path: str) -> None:
        self._count(message.name, f"{path}.name", "max_name_length")
        self._count(message.tool_call_id, f"{path}.tool_call_id", "max_name_length")
        if isinstance(message.content, list):
            self._count(message.content, f"{path}.content", "max_parts")
        self._count(message.tool_calls, f"{path}.tool_calls", "max_tool_calls")
        for at, call in enumerate(message.tool_calls or []):
            self._call(call, f"{path}.tool_calls[{at}]")

    def _call(self, call: ToolCall, path: str) -> None:
        self._count(call.id, f"{path}.id", "max_name_length")
        if call.function is not None:
            self._count(call.function.name, f"{path}.function.name", "max_name_length")

    def _tools(self, request: ChatRequest) -> None:
        self._count(request.tools, "tools", "max_tools")
        sizes = [
            self._object(tool.function.parameters, f"tools[{at}].function.parameters")
            for at, tool in enumerate(request.tools or [])
            if tool.function is not None
        ]
        # They may become one grammar, so they share what one schema may have.
        self._bound(sum(sizes), "tools", "max_schema_bytes")

    def _object(self, value: dict[str, Any] | None, path: str) -> int:
        """Its size. Every level of it costs stack wherever it is written or read again, so they are bounded too."""
        if value is None:
            return 0
        level: list[Any] = [value]
        for _ in range(self._limits.max_schema_depth):
            level = [below for one in level for below in _members(one)]
            if not level:
                break
        else:
            self._refuse("more", path, "max_schema_depth")
        size = len(msgspec.json.encode(value))
        self._bound(size, path, "max_schema_bytes")
        return size

    def _lengths(self, values: Sequence[str], path: str, key: str) -> None:
        for at, value in enumerate(values):
            self._count(value, f"{path}[{at}]", key)

    def _count(self, value: Sized | None, path: str, key: str) -> None:
        if value is not None:
            self._bound(len(value), path, key)

    def _at_most(self, value: int | None, path: str, key: str) -> None:
        if value is not None:
            self._bound(value, path, key)

    def _bound(self, found: int, path: str, key: str) -> None:
        if found > getattr(self._limits, key):
            self._refuse(str(found), path, key)

    def _refuse(self, found: str, path: str, key: str) -> None:
        limit = getattr(self._limits, key)
        raise InvalidRequest(f"`{path}`: at most {limit} {UNITS[key]}, not {found} (`input.{key}`)", param=path)


def _members(value: object) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, dict | list)]
