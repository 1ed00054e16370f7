"""From the turns of a chat to messages whose content is text."""

from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.protocols.openai.schema.chat import Message, Part, ToolCall

ROLES: dict[str, neutral.Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""Roles that clients may use, and what chat templates call them."""


def messages(turns: list[Message]) -> list[neutral.Message]:
    """The turns as chat templates want them.

    Answers of tools get the name of the function that was called, which some templates need and OpenAI's schema has
    no place for.

    Raises:
        InvalidRequest: a turn cannot be used; UnsupportedParameter, ImageInputUnsupported: what is not done.
    """
    called: dict[str, str] = {}
    found = []
    for at, turn in enumerate(turns):
        message = _message(turn, f"messages[{at}]", called)
        called |= {call.id: call.name for call in message.tool_calls}
        found.append(message)
    return found


def _message(turn: Message, path: str, called: dict[str, str]) -> neutral.Message:
    _refuse_unsupported(turn, path)
    calls = [_call(call, f"{path}.tool_calls[{at}]") for at, call in enumerate(turn.tool_calls or [])]
    if calls and turn.role != "assistant":
        raise InvalidRequest(f"`{path}.tool_calls`: only `assistant` turns have them", param=f"{path}.tool_calls")
    if turn.role == "tool" and turn.tool_call_id is None:
        raise InvalidRequest(f"`{path}.tool_call_id`: is required in a `tool` turn", param=f"{path}.tool_call_id")
    answers = turn.tool_call_id if turn.role == "tool" else None
    role = _role(turn.role, f"{path}.role")
    text = "" if calls and turn.content is None else _content(turn.content, f"{path}.content")
    parts: list[neutral.ContentPart] = [neutral.TextPart(text=text)] if text else []
    if answers is not None:
        texts = [neutral.TextPart(text=text)]
        parts = [neutral.ToolResultPart(call_id=answers, name=turn.name or called.get(answers), content=[*texts])]
    return neutral.Message(role=role, content=parts, name=turn.name, reasoning=turn.reasoning_content, tool_calls=calls)


def _refuse_unsupported(turn: Message, path: str) -> None:
    for name in ("function_call", "audio"):
        if getattr(turn, name) is not None:
            raise UnsupportedParameter(f"`{path}.{name}` is not supported; leave it out", param=f"{path}.{name}")


def _role(role: str, path: str) -> neutral.Role:
    if role == "function":
        raise UnsupportedParameter(f"`{path}`: `function` is not supported; use `tool`", param=path)
    if role not in ROLES:
        allowed = ", ".join(f"`{name}`" for name in ROLES)
        raise InvalidRequest(f"`{path}`: one of {allowed}, not {role!r}", param=path)
    return ROLES[role]


def _call(call: ToolCall, path: str) -> neutral.ToolCall:
    if call.type != "function":
        raise UnsupportedParameter(f"`{path}.type`: only `function`, not {call.type!r}", param=f"{path}.type")
    if call.function is None:
        raise InvalidRequest(f"`{path}.function`: is required", param=f"{path}.function")
    return neutral.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _content(content: str | list[Part] | None, path: str) -> str:
    if content is None:
        raise InvalidRequest(f"`{path}`: is required; a string or a list of text parts", param=path)
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{path}[{at}]") for at, part in enumerate(content))


def _part(part: Part, path: str) -> str:
    if part.type == "text":
        if part.text is None:
            raise InvalidRequest(f"`{path}.text`: is required in a text part", param=f"{path}.text")
        return part.text
    if part.type in ("image_url", "input_image", "image"):
        raise ImageInputUnsupported(f"`{path}`: image inputs are not supported; send text parts only", param=path)
    raise InvalidRequest(f"`{path}.type`: only `text` parts are supported, not {part.type!r}", param=f"{path}.type")
