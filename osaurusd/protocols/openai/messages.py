"""Parses the messages of a chat request."""

from typing import NoReturn

from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.protocols.openai.chat_types import ContentPart, Message, ToolCallParam

ROLES: dict[str, neutral.Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""The roles of OpenAI's API, and the corresponding roles of chat templates."""

_IMAGE_TYPES = frozenset({"image_url", "input_image", "image"})


def parse_messages(messages: list[Message]) -> list[neutral.Message]:
    """Convert messages to neutral ones.

    Tool results get the name of the called function, which some chat templates need and OpenAI's schema lacks.

    Raises:
        InvalidRequest: a message is invalid.
        UnsupportedParameter, ImageInputUnsupported: a message uses an unsupported feature.
    """
    function_names: dict[str, str] = {}
    parsed = []
    for index, message in enumerate(messages):
        neutral_message = _parse_message(message, f"messages[{index}]", function_names)
        for call in neutral_message.tool_calls:
            function_names[call.id] = call.name
        parsed.append(neutral_message)
    return parsed


# Long chats are parsed on the event loop: paths are put together only for errors.


def _parse_message(message: Message, path: str, function_names: dict[str, str]) -> neutral.Message:
    _reject_unsupported(message, path)
    role = ROLES.get(message.role) or _reject_role(message.role, f"{path}.role")
    calls = _parse_tool_calls(message, path) if message.tool_calls else []
    parts = [] if calls and message.content is None else _parse_content(message.content, path)
    content: list[neutral.ContentPart] = [*parts]
    if role == "tool":
        content = [_tool_result(message, parts, path, function_names)]
    return neutral.Message(
        role=role, content=content, name=message.name, reasoning=message.reasoning_content, tool_calls=calls
    )


def _reject_unsupported(message: Message, path: str) -> None:
    for name, value in (("function_call", message.function_call), ("audio", message.audio)):
        if value is not None:
            raise UnsupportedParameter(f"`{path}.{name}` is not supported; omit it", param=f"{path}.{name}")


def _reject_role(role: str, path: str) -> NoReturn:
    if role == "function":
        raise UnsupportedParameter(f"`{path}`: the role `function` is not supported; use `tool`", param=path)
    allowed = ", ".join(f"`{name}`" for name in ROLES)
    raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {role!r}", param=path)


def _parse_tool_calls(message: Message, path: str) -> list[neutral.ToolCall]:
    if message.role != "assistant":
        raise InvalidRequest(
            f"`{path}.tool_calls`: only `assistant` messages can have tool calls", param=f"{path}.tool_calls"
        )
    return [
        _parse_tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or [])
    ]


def _parse_tool_call(call: ToolCallParam, path: str) -> neutral.ToolCall:
    if call.type != "function":
        raise UnsupportedParameter(
            f"`{path}.type`: only `function` is supported, not {call.type!r}", param=f"{path}.type"
        )
    if call.function is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    return neutral.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _tool_result(
    message: Message, parts: list[neutral.TextPart], path: str, function_names: dict[str, str]
) -> neutral.ToolResultPart:
    call_id = message.tool_call_id
    if call_id is None:
        raise InvalidRequest(f"`{path}.tool_call_id`: is required in a `tool` message", param=f"{path}.tool_call_id")
    return neutral.ToolResultPart(call_id=call_id, name=message.name or function_names.get(call_id), content=[*parts])


def _parse_content(content: str | list[ContentPart] | None, path: str) -> list[neutral.TextPart]:
    if isinstance(content, str):
        return [neutral.TextPart(text=content)] if content else []
    if content is None:
        raise InvalidRequest(
            f"`{path}.content`: is required; send a string or a list of text parts", param=f"{path}.content"
        )
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            _reject_part(part, f"{path}.content[{index}]")
    return [neutral.TextPart(text=part.text or "") for part in content]


def _reject_part(part: ContentPart, path: str) -> NoReturn:
    if part.type == "text":
        raise InvalidRequest(f"`{path}.text`: is required in a text part", param=f"{path}.text")
    if part.type in _IMAGE_TYPES:
        raise ImageInputUnsupported(f"`{path}`: image input is not supported; send text parts only", param=path)
    raise InvalidRequest(f"`{path}.type`: only `text` parts are supported, not {part.type!r}", param=f"{path}.type")
