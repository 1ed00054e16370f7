"""Converts the messages of a chat. Ollama's tool calls have no ids: results follow the calls in their order."""

from collections import defaultdict, deque

import msgspec

from osaurusd.errors import InvalidRequest
from osaurusd.inference import request as neutral
from osaurusd.inference.images import ImageCollector
from osaurusd.protocols.ollama.types import Message, ToolCall
from osaurusd.wire.errors import as_json

ROLES: dict[str, neutral.Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

IMAGE_ROLES = frozenset({"user", "tool"})


class _OpenCalls:
    """The calls of a chat that have no result yet."""

    def __init__(self) -> None:
        self._calls: dict[int, neutral.ToolCall] = {}
        # The numbers of calls in their order: with an id, of a function, and under None of all.
        self._order: defaultdict[tuple[str, str] | None, deque[int]] = defaultdict(deque)
        self._count = 0

    def add(self, call: ToolCall) -> neutral.ToolCall:
        """Register a call of an assistant message, with an id if it has none."""
        self._count += 1
        function = call.function
        is_text = isinstance(function.arguments, str)
        arguments = function.arguments if is_text else msgspec.json.encode(function.arguments).decode()
        parsed = neutral.ToolCall(id=call.id or f"call_{self._count}", name=function.name, arguments=str(arguments))
        self._calls[self._count] = parsed
        for key in (("id", parsed.id), ("name", parsed.name), None):
            self._order[key].append(self._count)
        return parsed

    def take(self, message: Message) -> neutral.ToolCall:
        """Return the call that a result belongs to: by its id, else by its name, else the oldest."""
        id_, name = message.tool_call_id, message.tool_name
        call = None if id_ is None else self._take_oldest(("id", id_))
        if call is None and name is not None:
            call = self._take_oldest(("name", name))
        if call is None and id_ is None and name is None:
            call = self._take_oldest(None)
        if call is None:
            self._count += 1
            return neutral.ToolCall(id=id_ or f"call_{self._count}", name=name or "", arguments="{}")
        return call

    def _take_oldest(self, key: tuple[str, str] | None) -> neutral.ToolCall | None:
        order = self._order[key]
        while order:
            if (call := self._calls.pop(order.popleft(), None)) is not None:
                return call
        return None


def parse_messages(messages: list[Message], images: ImageCollector) -> list[neutral.Message]:
    """Convert messages to neutral ones, and collect their images.

    Raises:
        InvalidRequest: a role is unknown, or a message of this role must not have tool calls or images.
    """
    calls = _OpenCalls()
    return [_parse_message(message, f"messages[{index}]", calls, images) for index, message in enumerate(messages)]


def parse_images(values: list[str] | None, path: str, images: ImageCollector) -> list[neutral.ImagePart]:
    """Collect the images of a field."""
    return [images.add(value, f"{path}[{index}]") for index, value in enumerate(values or [])]


def _parse_message(message: Message, path: str, calls: _OpenCalls, images: ImageCollector) -> neutral.Message:
    role = ROLES.get(message.role)
    if role is None:
        allowed = ", ".join(f"`{name}`" for name in ROLES)
        raise InvalidRequest(
            f"`{path}.role`: must be one of {allowed}, not {as_json(message.role)}", param=f"{path}.role"
        )
    if message.images and role not in IMAGE_ROLES:
        raise InvalidRequest(
            f"`{path}.images`: only `user` and `tool` messages can have images", param=f"{path}.images"
        )
    if message.tool_calls and role != "assistant":
        raise InvalidRequest(
            f"`{path}.tool_calls`: only `assistant` messages can have tool calls", param=f"{path}.tool_calls"
        )
    # As in Ollama, the images of a message precede its text.
    parts: list[neutral.TextPart | neutral.ImagePart] = [*parse_images(message.images, f"{path}.images", images)]
    if message.content:
        parts.append(neutral.TextPart(text=message.content))
    if role == "tool":
        call = calls.take(message)
        result = neutral.ToolResultPart(call_id=call.id, name=call.name or None, content=parts)
        return neutral.Message(role="tool", content=[result])
    return neutral.Message(
        role=role,
        content=[*parts],
        reasoning=message.thinking or None,
        tool_calls=[calls.add(call) for call in message.tool_calls or []],
    )
