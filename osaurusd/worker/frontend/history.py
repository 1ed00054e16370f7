"""Adapting the history of a chat to what a chat template accepts.

Templates differ in the roles, the order and the form of messages that they render. A `TemplateProfile` states what one
template accepts, `template_probe` determines it, and `adapt` rewrites a history accordingly without losing any text.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from osaurusd.inference.request import ChatPrompt, ContentPart, Message, Role, TextPart, Tool, ToolCall, ToolResultPart
from osaurusd.worker.frontend import fallback_tools
from osaurusd.worker.frontend.call_order import pair_results, separate_calls, split_calls
from osaurusd.worker.frontend.template_tools import dump_json, simple_template_tool, template_tool

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}\Z")
_SHORT_ID_LENGTH = 9


@dataclass(frozen=True)
class TemplateProfile:
    """What a chat template accepts. The defaults are the conventions of transformers.

    Attributes:
        part_lists: the roles whose content must be a list of parts instead of a string.
        part_key: the key of a part's text.
        system: where the template accepts system messages; `user` means nowhere.
        alternates: user and assistant messages must alternate, starting with the user. Tool calls do not count.
        ends_with_user: the template drops an answer at the end.
        needs_user: there must be a user message, anywhere or as the first one after system messages.
        filler: the content of an empty message.
        tools: how the template receives tools: as the usual argument, as a property of the system message (a list or
            JSON text), or as another variable; `text` means that it does not render them.
        empty_tools: without tools, there must be an empty list of them.
        simple_tools: the parameters of tools must have plain types.
        empty_descriptions: tools without a description need an empty one.
        calls: the shape of a tool call; `text` means that the template does not render calls and results.
        arguments: whether the arguments of a call are an object or its JSON text.
        any_arguments: arguments that are not an object are accepted as text.
        short_ids: call ids must have nine letters or digits.
        single_calls: a message may have only one call.
        separate_calls: a message may have either text or calls.
        paired_results: the results of a message's calls must follow it, one for each call, in the same order.
        reasoning: the key of earlier reasoning; `part` means a part of the content.
    """

    part_lists: frozenset[Role] = field(default_factory=frozenset)
    part_key: Literal["text", "content"] = "text"
    system: Literal["anywhere", "first", "user"] = "anywhere"
    alternates: bool = False
    ends_with_user: bool = False
    needs_user: Literal["no", "anywhere", "first"] = "no"
    filler: str = ""
    tools: Literal["argument", "message", "message_json", "xml_tools", "functions", "text"] = "argument"
    empty_tools: bool = False
    simple_tools: bool = False
    empty_descriptions: bool = False
    calls: Literal["nested", "flat", "text"] = "nested"
    arguments: Literal["object", "text"] = "object"
    any_arguments: bool = True
    short_ids: bool = False
    single_calls: bool = False
    separate_calls: bool = False
    paired_results: bool = False
    reasoning: Literal["reasoning_content", "thinking", "reasoning", "thought", "part"] = "reasoning_content"


PLAIN_TEXT = TemplateProfile(system="user", alternates=True, needs_user="first", filler=" ", tools="text", calls="text")
"""The least that a template can accept: alternating messages of plain text."""


class TemplateInput(NamedTuple):
    """The arguments of a chat template. `variables` are those that depend on the tools."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]


def adapt(chat: ChatPrompt, profile: TemplateProfile) -> TemplateInput:
    """Rewrite a chat as the template accepts it."""
    messages = _merge_answers(chat.messages)
    if profile.calls == "text" or profile.tools == "text":
        messages = fallback_tools.describe_tools(messages, chat.tools if profile.tools == "text" else [])
    if profile.system != "anywhere":
        messages = _place_system(messages, profile)
    if profile.paired_results:
        messages = pair_results(messages)
    if profile.separate_calls:
        messages = [part for message in messages for part in separate_calls(message)]
    if profile.single_calls:
        messages = split_calls(messages)
    if profile.needs_user != "no":
        messages = _add_user(messages, profile)
    if profile.alternates:
        messages = _alternate(messages)
    if profile.ends_with_user and messages and messages[-1].role == "assistant":
        messages = [*messages, Message(role="user")]
    return _render(messages, chat, profile)


# Order and roles


def _merge_answers(messages: list[Message]) -> list[Message]:
    """Merge the reasoning, the text and the calls of one answer, which some protocols send as separate items."""
    merged: list[Message] = []
    for message in messages:
        if merged and _continues_answer(merged[-1], message):
            calls = [*merged[-1].tool_calls, *message.tool_calls]
            message = msgspec.structs.replace(_join(merged.pop(), message), tool_calls=calls)
        merged.append(message)
    return merged


def _continues_answer(first: Message, second: Message) -> bool:
    if first.role != "assistant" or second.role != "assistant":
        return False
    only_reasoning = bool(first.reasoning) and not first.text and not first.tool_calls
    only_calls = bool(second.tool_calls) and not second.text
    return only_reasoning or only_calls


def _place_system(messages: list[Message], profile: TemplateProfile) -> list[Message]:
    """Keep system text at the beginning only, or in no message. Other system text becomes user text at its position."""
    start = _count_leading_system(messages)
    leading, rest = messages[:start], _system_to_user(messages[start:])
    if not leading:
        return rest
    system = leading[0]
    for message in leading[1:]:
        system = _join(system, message)
    if profile.system == "first":
        return [system, *rest]
    text = msgspec.structs.replace(system, role="user")
    index = next((index for index, message in enumerate(rest) if message.role == "user"), None)
    if index is None:
        return [text, *rest]
    return [*rest[:index], _join(text, rest[index]), *rest[index + 1 :]]


def _count_leading_system(messages: list[Message]) -> int:
    return next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))


def _system_to_user(messages: list[Message]) -> list[Message]:
    """Turn system messages into user messages, joined with a user message that follows."""
    converted: list[Message] = []
    joins = False
    for message in messages:
        current = msgspec.structs.replace(message, role="user") if message.role == "system" else message
        if joins and current.role == "user":
            current = _join(converted.pop(), current)
        converted.append(current)
        joins = message.role == "system"
    return converted


def _add_user(messages: list[Message], profile: TemplateProfile) -> list[Message]:
    """Add an empty user message where the template needs one."""
    start = _count_leading_system(messages)
    candidates = messages[start : start + 1] if profile.needs_user == "first" else messages
    if any(message.role == "user" for message in candidates):
        return messages
    return [*messages[:start], Message(role="user"), *messages[start:]]


def _alternate(messages: list[Message]) -> list[Message]:
    """Join messages of one role in a row. Where that is not possible, put an empty message in between."""
    result: list[Message] = []
    expected: Role = "user"
    for message in messages:
        if message.role in ("system", "tool") or message.tool_calls:
            result.append(message)
            continue
        if message.role != expected:
            if result and result[-1].role == message.role and not result[-1].tool_calls:
                result[-1] = _join(result[-1], message)
                continue
            result.append(Message(role=expected))
        result.append(message)
        expected = "assistant" if message.role == "user" else "user"
    return result


def _join(first: Message, second: Message) -> Message:
    """Join the contents of two messages of one role."""
    contents = [[part for part in message.content if part != TextPart(text="")] for message in (first, second)]
    separator: list[ContentPart] = [TextPart(text="\n\n")] if all(contents) else []
    reasoning = "\n\n".join(text for text in (first.reasoning, second.reasoning) if text)
    return msgspec.structs.replace(
        first,
        content=[*contents[0], *separator, *contents[1]],
        name=first.name if first.name == second.name else None,
        reasoning=reasoning or None,
    )


# Form


def _render(messages: list[Message], chat: ChatPrompt, profile: TemplateProfile) -> TemplateInput:
    rendered: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            rendered += [_render_result(message, result, names, profile) for result in message.tool_results]
        else:
            rendered.append(_render_message(message, profile))
    return _add_tools(rendered, [] if profile.tools == "text" else chat.tools, profile)


def _add_tools(rendered: list[dict[str, Any]], requested: list[Tool], profile: TemplateProfile) -> TemplateInput:
    build = simple_template_tool if profile.simple_tools else template_tool
    tools = [build(tool) for tool in requested]
    if profile.empty_descriptions:
        for tool in tools:
            tool["function"].setdefault("description", "")
    argument = tools or ([] if profile.empty_tools else None)
    match profile.tools:
        case "message" | "message_json" if tools:
            rendered = _add_tools_to_system(rendered, tools, profile)
        case "xml_tools" if tools:
            return TemplateInput(rendered, argument, {"xml_tools": tools})
        case "functions":  # of FireFunction, which needs the date, too
            today = datetime.now(UTC).date().isoformat()
            return TemplateInput(rendered, argument, {"functions": dump_json(tools), "datetime": today})
    return TemplateInput(rendered, argument, {})


def _add_tools_to_system(
    rendered: list[dict[str, Any]], tools: list[dict[str, Any]], profile: TemplateProfile
) -> list[dict[str, Any]]:
    if not rendered or rendered[0]["role"] != "system":
        rendered = [_render_message(Message(role="system"), profile), *rendered]
    value: Any = tools if profile.tools == "message" else dump_json(tools)
    return [rendered[0] | {"tools": value}, *rendered[1:]]


def _render_result(
    message: Message, result: ToolResultPart, names: dict[str, str], profile: TemplateProfile
) -> dict[str, Any]:
    content: Any = result.text
    if "tool" in profile.part_lists:
        content = [{"type": "text", profile.part_key: content}]
    rendered = {"role": "tool", "content": content, "tool_call_id": _call_id(result.call_id, profile)}
    # Some templates need the function's name.
    if name := result.name or message.name or names.get(result.call_id):
        rendered["name"] = name
    return rendered


def _render_message(message: Message, profile: TemplateProfile) -> dict[str, Any]:
    text = message.text or ("" if message.tool_calls else profile.filler)
    parts = [{"type": "text", profile.part_key: text}]
    content: Any = parts if message.role in profile.part_lists else text
    rendered: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        rendered["name"] = message.name
    if message.reasoning:
        if profile.reasoning == "part":
            thinking = [{"type": "thinking", "thinking": message.reasoning}]
            rendered["content"] = [*thinking, *parts] if text else thinking
        else:
            rendered[profile.reasoning] = message.reasoning
    if message.tool_calls:
        rendered["tool_calls"] = [_render_call(call, profile) for call in message.tool_calls]
    return rendered


def _render_call(call: ToolCall, profile: TemplateProfile) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _render_arguments(call.arguments, profile)}
    rendered = {"id": _call_id(call.id, profile), "type": "function"}
    return rendered | (function if profile.calls == "flat" else {"function": function})


def _render_arguments(text: str, profile: TemplateProfile) -> Any:
    """Return arguments as an object or JSON text. Models also write other text, and an output can be cut off."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        value = text
    if value is None or value in ("", []):
        value = {}
    if not isinstance(value, dict):
        if profile.any_arguments:
            return text
        value = {"arguments": value}
        text = dump_json(value)
    if profile.arguments == "object":
        return value
    return text if value else "{}"


def _call_id(call_id: str, profile: TemplateProfile) -> str:
    """Return the id for the template. A short id depends on the original one only, so results match their calls."""
    if not profile.short_ids or _SHORT_ID.match(call_id):
        return call_id
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:_SHORT_ID_LENGTH]
