"""A plain way of calling tools, for models whose chat template has none: how it is explained, and how it looks."""

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from osaurusd.inference.request import Message, TextPart, Tool, ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_EXPLANATION = """\
You can call functions. These are their descriptions, one JSON object a line:
{tools}
To call one, answer with a JSON object that holds its name and its arguments, between these tags and nothing else:
{open}
{{"name": "the name of the function", "arguments": {{"the name of an argument": "its value"}}}}
{close}
Use the tags once for each call. You are then given the results. Where no function is of use, answer in plain text."""

_TOOLS = re.compile(r"\btools\b")


def template_tool(tool: Tool) -> dict[str, Any]:
    """Build the object that chat templates expect for a tool, by the convention of transformers."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def takes_tools(tokenizer: Any) -> bool:
    """Whether the model's chat template does something with tools."""
    if not tokenizer.has_chat_template:
        return False
    match tokenizer.chat_template:
        case str() as template:
            return bool(_TOOLS.search(template))
        case dict() as templates:
            return any(_TOOLS.search(template) for template in templates.values())
    # mlx_lm renders chats of this model with code of its own, which is written for models with tools.
    return True


def describe(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The same chat without tools, calls and results: all of them as text.

    Results become user turns, joined with the user turn that follows, for there are templates that want turns to
    alternate.
    """
    turns: list[Message] = []
    after_result = False
    for message in messages:
        turn = _as_text(message)
        if after_result and turn.role == "user":
            turn = Message.from_text("user", f"{turns.pop().text}\n\n{turn.text}")
        turns.append(turn)
        after_result = message.role == "tool"
    return _explained(turns, tools) if tools else turns


def _explained(turns: list[Message], tools: Sequence[Tool]) -> list[Message]:
    lines = "\n".join(json.dumps(template_tool(tool)["function"], ensure_ascii=False) for tool in tools)
    explanation = _EXPLANATION.format(tools=lines, open=OPEN, close=CLOSE)
    if turns and turns[0].role == "system":
        first = msgspec.structs.replace(turns[0], content=[TextPart(text=f"{turns[0].text}\n\n{explanation}")])
        return [first, *turns[1:]]
    return [Message.from_text("system", explanation), *turns]


def _as_text(message: Message) -> Message:
    if message.role == "tool":
        results = [f"Result of {one.name or one.call_id}:\n{message.text}" for one in message.tool_results]
        return Message.from_text("user", "\n\n".join(results))
    if message.tool_calls:
        blocks = "\n".join(_block(call) for call in message.tool_calls)
        content = f"{message.text}\n{blocks}" if message.text else blocks
        return msgspec.structs.replace(message, content=[TextPart(text=content)], tool_calls=[])
    return message


def _block(call: ToolCall) -> str:
    return f"{OPEN}\n{head(call.name)}{call.arguments}}}\n{CLOSE}"


def head(name: str) -> str:
    """How a call of the function `name` begins; its arguments follow, and a closing brace."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
