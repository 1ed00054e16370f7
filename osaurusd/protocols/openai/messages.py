"""Parses the messages of a chat request."""

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
        function_names |= {call.id: call.name for call in neutral_message.tool_calls}
        parsed.append(neutral_message)
    return parsed


def _parse_message(message: Message, path: str, function_names: dict[str, str]) -> neutral.Message:
    _reject_unsupported(message, path)
    role = _parse_role(message.role, f"{path}.role")
    calls = [
        _parse_tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or [])
    ]
    if calls and role != "assistant":
        raise InvalidRequest(
            f"`{path}.tool_calls`: only `assistant` messages can have tool calls", param=f"{path}.tool_calls"
        )
    parts = [] if calls and message.content is None else _parse_content(message.content, f"{path}.content")
    content: list[neutral.ContentPart] = [*parts]
    if role == "tool":
        content = [_tool_result(message, parts, path, function_names)]
    return neutral.Message(
        role=role, content=content, name=message.name, reasoning=message.reasoning_content, tool_calls=calls
    )


def _reject_unsupported(message: Message, path: str) -> None:
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            raise UnsupportedParameter(f"`{path}.{name}` is not supported; omit it", param=f"{path}.{name}")


def _parse_role(role: str, path: str) -> neutral.Role:
    if role == "function":
        raise UnsupportedParameter(f"`{path}`: the role `function` is not supported; use `tool`", param=path)
    if role not in ROLES:
        allowed = ", ".join(f"`{name}`" for name in ROLES)
        raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {role!r}", param=path)
    return ROLES[role]


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
    if content is None:
        raise InvalidRequest(f"`{path}`: is required; send a string or a list of text parts", param=path)
    if isinstance(content, str):
        return [neutral.TextPart(text=content)] if content else []
    return [_parse_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _parse_part(part: ContentPart, path: str) -> neutral.TextPart:
    if part.type == "text":
        if part.text is None:
            raise InvalidRequest(f"`{path}.text`: is required in a text part", param=f"{path}.text")
        return neutral.TextPart(text=part.text)
    if part.type in _IMAGE_TYPES:
        raise ImageInputUnsupported(f"`{path}`: image input is not supported; send text parts only", param=path)
    raise InvalidRequest(f"`{path}.type`: only `text` parts are supported, not {part.type!r}", param=f"{path}.type")
