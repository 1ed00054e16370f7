"""Rendering chats with the model's chat template, or as plain `role: text` lines for a model without one."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.inference.request import ChatPrompt, Message, TextPart, ToolCall, ToolResultPart
from osaurusd.worker.frontend import context_length, fallback_tools

FALLBACK_STOP = "\nuser:"

# Keyword arguments that transformers interprets itself. A client's `chat_template` among them would be executed.
_RESERVED_VARIABLES = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {
    "documents"
}
# If the prompt ends with the marker that starts reasoning, the marker is within this many tokens of the end.
_TAIL_TOKENS = 16


@dataclass(frozen=True)
class EncodedPrompt:
    """Prompt tokens, and properties of the prompt that the output depends on.

    Attributes:
        tokens: token ids.
        stop: stop strings in addition to those of the request.
        shared_prefix_length: how many leading tokens do not depend on the last user message; None if unknown.
        starts_reasoning: the prompt ends with the marker that starts reasoning.
    """

    tokens: list[int]
    stop: list[str] = field(default_factory=list)
    shared_prefix_length: int | None = None
    starts_reasoning: bool = False


def encode_chat(
    tokenizer: Any, chat: ChatPrompt, max_context: int | None, *, find_shared_prefix: bool = False
) -> EncodedPrompt:
    """Render and tokenize a chat.

    A template that rejects the system role gets the system text at the beginning of the first user message. A template
    without support for tools gets them as text.

    Raises:
        InvalidRequest: the template rejects the messages, or a template variable is reserved.
        ContextLengthExceeded: the chat is far too long.
    """
    _check_variables(chat)
    encoded = _encode(tokenizer, chat, max_context)
    if find_shared_prefix:
        return replace(encoded, shared_prefix_length=_shared_prefix_length(tokenizer, chat, encoded.tokens))
    return encoded


def _check_variables(chat: ChatPrompt) -> None:
    if reserved := sorted(_RESERVED_VARIABLES & chat.template_variables.keys()):
        raise InvalidRequest(
            f"{reserved[0]!r} is not a chat template variable; leave it out",
            location=("prompt", "template_variables", reserved[0]),
        )


def _encode(tokenizer: Any, chat: ChatPrompt, max_context: int | None) -> EncodedPrompt:
    if not fallback_tools.supports_tools(tokenizer):
        messages = fallback_tools.describe_tools(chat.messages, chat.tools)
        chat = ChatPrompt(messages=messages, template_variables=chat.template_variables)
    try:
        encode = _encode_with_template if tokenizer.has_chat_template else _encode_without_template
        return encode(tokenizer, chat, max_context)
    except ContextLengthExceeded:
        raise
    except Exception as error:
        raise InvalidRequest(
            f"the model's chat template rejects these messages: {str(error) or type(error).__name__}",
            location=("prompt", "messages"),
        ) from error


def _encode_with_template(tokenizer: Any, chat: ChatPrompt, max_context: int | None) -> EncodedPrompt:
    failure: Exception | None = None
    is_large = context_length.is_large(len(msgspec.json.encode(chat)), max_context)
    tools = [fallback_tools.template_tool(tool) for tool in chat.tools] or None
    for messages in _variants(chat.messages):
        render = partial(
            tokenizer.apply_chat_template, messages, tools=tools, add_generation_prompt=True, **chat.template_variables
        )
        try:
            if is_large:
                # Check the rendered text, not the messages: templates drop parts of them, such as earlier reasoning.
                context_length.check_text(tokenizer, render(tokenize=False), max_context)
            tokens = list(render(tokenize=True))
        except ContextLengthExceeded:
            raise
        except Exception as error:  # noqa: BLE001  a template is a program that can raise anything
            failure = error
        else:
            return EncodedPrompt(tokens, starts_reasoning=_ends_with_reasoning_marker(tokenizer, tokens))
    assert failure is not None, "there is at least one variant"
    raise failure


def _variants(messages: list[Message]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages in each form that templates may expect, the most common one first."""
    # By convention, the arguments of a call are an object; some templates expect JSON text.
    argument_forms = [True, False] if any(message.tool_calls for message in messages) else [True]
    for candidate in (messages, _fold_system_messages(messages)):
        if candidate is not None:
            for parse_arguments in argument_forms:
                yield list(_template_messages(candidate, parse_arguments=parse_arguments))


def _template_messages(messages: list[Message], *, parse_arguments: bool) -> Iterator[dict[str, Any]]:
    for message in messages:
        if message.role == "tool":
            for result in message.tool_results:
                yield _template_result(message, result)
        else:
            yield _template_message(message, parse_arguments=parse_arguments)


def _template_result(message: Message, result: ToolResultPart) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": "tool", "content": result.text, "tool_call_id": result.call_id}
    # Some templates need the function's name.
    if name := result.name or message.name:
        rendered["name"] = name
    return rendered


def _template_message(message: Message, *, parse_arguments: bool) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        rendered["name"] = message.name
    if message.reasoning is not None:
        rendered["reasoning_content"] = message.reasoning
    if message.tool_calls:
        rendered["tool_calls"] = [_template_call(call, parse_arguments=parse_arguments) for call in message.tool_calls]
    return rendered


def _template_call(call: ToolCall, *, parse_arguments: bool) -> dict[str, Any]:
    arguments: Any = call.arguments
    if parse_arguments:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _fold_system_messages(messages: list[Message]) -> list[Message] | None:
    """Move all system text into the first user message. Return None if there is nothing to move."""
    system = [message.text for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    first_user = next((index for index, message in enumerate(others) if message.role == "user"), None)
    if not system or first_user is None:
        return None
    text = "\n\n".join([*system, others[first_user].text])
    others[first_user] = msgspec.structs.replace(others[first_user], content=[TextPart(text=text)])
    return others


def _encode_without_template(tokenizer: Any, chat: ChatPrompt, max_context: int | None) -> EncodedPrompt:
    text = "\n".join([*(f"{message.role}: {message.text}" for message in chat.messages), "assistant:"])
    context_length.check_text(tokenizer, text, max_context)
    return EncodedPrompt(list(tokenizer.encode(text)), [FALLBACK_STOP])


def _ends_with_reasoning_marker(tokenizer: Any, tokens: list[int]) -> bool:
    if not tokenizer.has_thinking:
        return False
    return str(tokenizer.decode(tokens[-_TAIL_TOKENS:])).rstrip().endswith(tokenizer.think_start)


def _shared_prefix_length(tokenizer: Any, chat: ChatPrompt, tokens: list[int]) -> int | None:
    """Compare the prompt with one whose last user message differs from its first character on."""
    last_user = next((i for i in reversed(range(len(chat.messages))) if chat.messages[i].role == "user"), None)
    if last_user is None:
        return None
    message = chat.messages[last_user]
    changed = msgspec.structs.replace(message, content=[TextPart(text="1" if message.text.startswith("0") else "0")])
    messages = [*chat.messages[:last_user], changed, *chat.messages[last_user + 1 :]]
    try:
        others = _encode(tokenizer, msgspec.structs.replace(chat, messages=messages), None).tokens
    except InvalidRequest:
        return None
    pairs = enumerate(zip(tokens, others, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(others))) or None
