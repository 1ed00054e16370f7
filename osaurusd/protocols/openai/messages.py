"""Parses the messages of a chat request."""

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.inference.images import ImageCollector
from osaurusd.json_text import replace_lone_surrogates
from osaurusd.protocols.openai.chat_types import ContentPart, Message, ToolCallParam
from osaurusd.wire.errors import as_json

ROLES: dict[str, neutral.Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""The roles of OpenAI's API, and the corresponding roles of chat templates."""

TEXT_FIELDS: Mapping[str, str] = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The types of text parts, here and in the Responses API, and the field with the text."""

IMAGE_TYPES = frozenset({"image_url", "input_image"})
"""The types of parts with an image, here and in the Responses API."""

IMAGE_ROLES = frozenset({"user", "tool"})
"""The roles of messages that can have images."""

Part = neutral.TextPart | neutral.ImagePart

# Messages of these roles may have no content: an assistant that only called tools, and a tool without output.
_OPTIONAL_CONTENT = frozenset({"assistant", "tool"})


def parse_messages(messages: list[Message], images: ImageCollector) -> list[neutral.Message]:
    """Convert messages to neutral ones, and collect their images.

    Tool results get the name of the called function, which some chat templates need and OpenAI's schema lacks. Calls
    without an id get one, and results without one belong to the first call that has no result.

    Raises:
        InvalidRequest: a message is invalid.
        UnsupportedParameter: a message uses an unsupported feature.
    """
    calls = _EarlierCalls()
    return [_parse_message(message, f"messages[{index}]", calls, images) for index, message in enumerate(messages)]


def clean_arguments(arguments: str) -> str:
    """Replace lone surrogates: this is JSON in a string, so the decoder of the body has not checked its escapes."""
    return replace_lone_surrogates(arguments.encode()).decode() if "\\u" in arguments else arguments


class _EarlierCalls:
    """The tool calls so far.

    Attributes:
        names: the called functions by call id.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._open: set[str] = set()
        # The ids of calls in their order: of each function, and under None of all.
        self._order: defaultdict[str | None, deque[str]] = defaultdict(deque)

    def add(self, id_: str | None, name: str) -> str:
        """Add a call and return its id."""
        id_ = id_ or f"call_{len(self.names)}"
        self.names[id_] = name
        self._open.add(id_)
        for key in (name, None):
            self._order[key].append(id_)
        return id_

    def match(self, result: Message) -> str | None:
        """Return the id of the call that a result belongs to, or None if that is unknown."""
        id_ = result.tool_call_id or self._first_open(result.name)
        if id_ is not None:
            self._open.discard(id_)
        return id_

    def _first_open(self, name: str | None) -> str | None:
        order = self._order[name]
        while order and order[0] not in self._open:
            order.popleft()
        return order[0] if order else None


# Long chats are parsed on the event loop: paths are put together only for errors.


def _parse_message(
    message: Message, path: str, earlier_calls: _EarlierCalls, images: ImageCollector
) -> neutral.Message:
    _reject_unsupported(message, path)
    role = ROLES.get(message.role) or _reject_role(message.role, f"{path}.role")
    calls = _parse_tool_calls(message, path, earlier_calls) if message.tool_calls else []
    parts = _parse_content(message, path, role, images)
    content: list[neutral.ContentPart] = [*parts]
    if role == "tool":
        content = [_tool_result(message, parts, path, earlier_calls)]
    return neutral.Message(
        role=role, content=content, name=message.name, reasoning=_parse_reasoning(message), tool_calls=calls
    )


def _reject_unsupported(message: Message, path: str) -> None:
    for name, value in (("function_call", message.function_call), ("audio", message.audio)):
        if value is not None:
            raise UnsupportedParameter(f"`{path}.{name}` is not supported; omit it", param=f"{path}.{name}")


def _reject_role(role: str, path: str) -> NoReturn:
    if role == "function":
        raise UnsupportedParameter(f"`{path}`: the role `function` is not supported; use `tool`", param=path)
    allowed = ", ".join(f"`{name}`" for name in ROLES)
    raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {as_json(role)}", param=path)


def _parse_reasoning(message: Message) -> str | None:
    """Return the reasoning under any of its names, or from parts of the content."""
    for text in (message.reasoning_content, message.reasoning, message.thinking):
        if isinstance(text, str):
            return text
    if isinstance(message.content, list):
        texts = [part.thinking for part in message.content if isinstance(part, ContentPart) and part.thinking]
        return "".join(texts) or None
    return None


def _parse_tool_calls(message: Message, path: str, earlier_calls: _EarlierCalls) -> list[neutral.ToolCall]:
    if message.role != "assistant":
        raise InvalidRequest(
            f"`{path}.tool_calls`: only `assistant` messages can have tool calls", param=f"{path}.tool_calls"
        )
    return [
        _parse_tool_call(call, f"{path}.tool_calls[{index}]", earlier_calls)
        for index, call in enumerate(message.tool_calls or [])
    ]


def _parse_tool_call(call: ToolCallParam, path: str, earlier_calls: _EarlierCalls) -> neutral.ToolCall:
    if call.type and call.type != "function":
        raise UnsupportedParameter(
            f"`{path}.type`: only `function` is supported, not {as_json(call.type)}", param=f"{path}.type"
        )
    if call.function is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    name, arguments = call.function.name, call.function.arguments
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments or {}).decode()
    return neutral.ToolCall(id=earlier_calls.add(call.id, name), name=name, arguments=clean_arguments(arguments))


def _tool_result(
    message: Message, parts: list[Part], path: str, earlier_calls: _EarlierCalls
) -> neutral.ToolResultPart:
    call_id = earlier_calls.match(message)
    if call_id is None:
        raise InvalidRequest(
            f"`{path}.tool_call_id`: is required if no earlier tool call lacks a result", param=f"{path}.tool_call_id"
        )
    return neutral.ToolResultPart(
        call_id=call_id, name=message.name or earlier_calls.names.get(call_id), content=[*parts]
    )


def _parse_content(message: Message, path: str, role: neutral.Role, images: ImageCollector) -> list[Part]:
    content = message.content
    if isinstance(content, str):
        return [neutral.TextPart(text=content)] if content else []
    if content is None:
        if message.role in _OPTIONAL_CONTENT:
            return []
        raise InvalidRequest(
            f"`{path}.content`: is required; send a string or a list of parts", param=f"{path}.content"
        )
    parts: list[Part] = []
    for index, part in enumerate(content):
        if isinstance(part, ContentPart) and part.type in IMAGE_TYPES:
            parts.append(_parse_image(part, f"{path}.content[{index}]", role, images))
        elif (text := _part_text(part, path, index)) is not None:
            parts.append(neutral.TextPart(text=text))
    return parts


def _parse_image(part: ContentPart, path: str, role: neutral.Role, images: ImageCollector) -> neutral.ImagePart:
    check_image_role(role, path)
    match part.image_url:
        case None:
            raise InvalidRequest(f"`{path}.image_url`: is required in an image part", param=f"{path}.image_url")
        case str(url):
            return images.add(url, f"{path}.image_url", part.detail)
        case image:
            return images.add(image.url, f"{path}.image_url.url", image.detail)


def check_image_role(role: neutral.Role, path: str) -> None:
    """Check that a message can have images.

    Raises:
        InvalidRequest: it cannot.
    """
    if role not in IMAGE_ROLES:
        raise InvalidRequest(f"`{path}`: only user messages and results of tools can have images", param=path)


def _part_text(part: ContentPart | str, path: str, index: int) -> str | None:
    """Return the text of a part, or None for reasoning."""
    if isinstance(part, str):
        return part
    if part.type == "thinking":
        return None
    text: str | None = getattr(part, TEXT_FIELDS[part.type]) if part.type in TEXT_FIELDS else None
    if text is None:
        _reject_part(part, f"{path}.content[{index}]")
    return text


def _reject_part(part: ContentPart, path: str) -> NoReturn:
    if part.type in TEXT_FIELDS:
        field = f"{path}.{TEXT_FIELDS[part.type]}"
        raise InvalidRequest(f"`{field}`: is required in a text part", param=field)
    raise InvalidRequest(
        f"`{path}.type`: only `text` and `image_url` parts are supported, not {as_json(part.type)}",
        param=f"{path}.type",
    )
