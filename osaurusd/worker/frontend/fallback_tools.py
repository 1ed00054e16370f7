"""A plain text format for tools and tool calls, for models whose chat template does not support tools."""

from collections.abc import Sequence

import msgspec

from osaurusd.inference.request import Message, TextPart, Tool, ToolCall, ToolResultPart
from osaurusd.worker.frontend.template_tools import dump_json, template_tool

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"

_INSTRUCTIONS = """\
You can call functions. These are their descriptions, one JSON object a line:
{tools}
To call one, answer with a JSON object that holds its name and its arguments, between these tags and nothing else:
{start}
{{"name": "the name of the function", "arguments": {{"the name of an argument": "its value"}}}}
{end}
Use the tags once for each call. You are then given the results. Where no function is of use, answer in plain text."""


def call_prefix(name: str) -> str:
    """Return the text of a call of `name` up to its arguments. The arguments and a closing brace follow."""
    return f'{{"name": {dump_json(name)}, "arguments": '


def text_call_prefix(name: str) -> str:
    """Return the text of a call of `name` whose argument is text, up to that. It ends with the output."""
    return f'{{"name": {dump_json(name)}, "input":\n'


def describe_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Rewrite a chat so that tools, tool calls and tool results are plain text.

    Results become user messages, joined with a user message that follows: some templates require user and assistant
    messages to alternate.
    """
    rewritten: list[Message] = []
    after_result = False
    for message in messages:
        current = _to_text(message)
        if after_result and current.role == "user":
            current = Message.from_text("user", f"{rewritten.pop().text}\n\n{current.text}")
        rewritten.append(current)
        after_result = message.role == "tool"
    return _add_instructions(rewritten, tools) if tools else rewritten


def add_to_system(messages: Sequence[Message], text: str) -> list[Message]:
    """Add a paragraph to the system message; without one, add a system message."""
    if not messages or messages[0].role != "system":
        return [Message.from_text("system", text), *messages]
    system = messages[0]
    paragraph = TextPart(text=f"\n\n{text}" if system.text else text)
    return [msgspec.structs.replace(system, content=[*system.content, paragraph]), *messages[1:]]


def _add_instructions(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    lines = "\n".join(dump_json(template_tool(tool)["function"]) for tool in tools)
    return add_to_system(messages, _INSTRUCTIONS.format(tools=lines, start=CALL_START, end=CALL_END))


def _to_text(message: Message) -> Message:
    if message.role == "tool":
        return Message.from_text("user", "\n\n".join(map(result_text, message.tool_results)))
    if message.tool_calls:
        calls = "\n".join(_format_call(call) for call in message.tool_calls)
        text = f"{message.text}\n{calls}" if message.text else calls
        return msgspec.structs.replace(message, content=[TextPart(text=text)], tool_calls=[])
    return message


def result_text(result: ToolResultPart) -> str:
    """Return the text of a tool result."""
    return f"Result of {result.name or result.call_id}:\n{result.text}"


def _format_call(call: ToolCall) -> str:
    arguments = call.arguments.strip() or "{}"
    return f"{CALL_START}\n{call_prefix(call.name)}{arguments}}}\n{CALL_END}"
