"""From a prompt as it was sent to tokens: the model's chat template or a plain fallback, text, or tokens."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.inference import request as neutral
from osaurusd.inference.request import ChatPrompt, Message, TextPart, TextPrompt, TokenPrompt, ToolCall
from osaurusd.worker.frontend import infill, length, tools

FALLBACK_STOP = "\nuser:"

# What transformers itself makes of keyword arguments; a `chat_template` among them would be a program to run.
_RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {"documents"}
# A marker that opens a thought stands within so many tokens of the end of the prompt.
_TAIL = 16


@dataclass(frozen=True)
class Prompt:
    """Prompt tokens, and what the way of prompting entails.

    Attributes:
        tokens: never empty.
        stop: strings that end the answer, besides those that the request names.
        boundary: how many of the first tokens do not depend on what the last user turn says; None if that is not known.
        thinking: the answer begins inside a thought that the prompt has opened.
    """

    tokens: list[int]
    stop: list[str] = field(default_factory=list)
    boundary: int | None = None
    thinking: bool = False


def encode(
    tokenizer: Any, prompt: neutral.Prompt, context_length: int | None, *, find_boundary: bool = False
) -> Prompt:
    """Turn a prompt into tokens. Runs on any thread.

    Raises:
        InvalidRequest: the prompt cannot be used, or nothing is left of it. UnsupportedParameter: there is a suffix,
            but the model cannot fill in.
        ContextLengthExceeded: the prompt leaves no room for an answer.
    """
    match prompt:
        case ChatPrompt():
            encoded = _chat(tokenizer, prompt, context_length)
            _check(encoded.tokens, context_length)
            if find_boundary:
                return replace(encoded, boundary=_boundary(tokenizer, prompt, encoded.tokens))
            return encoded
        case TextPrompt():
            length.check_text(tokenizer, prompt.text + (prompt.suffix or ""), context_length)
            tokens = _text(tokenizer, prompt)
        case TokenPrompt():
            tokens = _known(tokenizer, prompt.tokens)
    _check(tokens, context_length)
    return Prompt(tokens)


def _check(tokens: list[int], context_length: int | None) -> None:
    if not tokens:
        raise InvalidRequest("the prompt is empty after tokenization", location=("prompt",))
    length.check(tokens, context_length)


# Chats


def _chat(tokenizer: Any, chat: ChatPrompt, context_length: int | None) -> Prompt:
    """Render and tokenize a chat.

    A template that rejects the system role gets the system text at the beginning of the first user turn, one that
    knows nothing of tools gets them as text. A model without a template gets one `role: text` line a turn.
    """
    if reserved := sorted(_RESERVED & chat.template_variables.keys()):
        raise InvalidRequest(
            f"{reserved[0]!r} is not a chat template variable; leave it out",
            location=("prompt", "template_variables", reserved[0]),
        )
    if not tools.takes_tools(tokenizer):
        chat = ChatPrompt(
            messages=tools.describe(chat.messages, chat.tools), template_variables=chat.template_variables
        )
    try:
        make = _with_template if tokenizer.has_chat_template else _without_template
        return make(tokenizer, chat, context_length)
    except ContextLengthExceeded:
        raise
    except Exception as error:
        raise InvalidRequest(
            f"the model's chat template rejects these messages: {str(error) or type(error).__name__}",
            location=("prompt", "messages"),
        ) from error


def _with_template(tokenizer: Any, chat: ChatPrompt, context_length: int | None) -> Prompt:
    failure: Exception | None = None
    large = length.is_large(len(msgspec.json.encode(chat)), context_length)
    for turns in _renderings(chat.messages):
        render = partial(
            tokenizer.apply_chat_template,
            turns,
            tools=[tools.template_tool(tool) for tool in chat.tools] or None,
            add_generation_prompt=True,
            **chat.template_variables,
        )
        try:
            if large:
                # Not what was sent: templates leave out much of it, such as old thoughts.
                length.check_text(tokenizer, render(tokenize=False), context_length)
            tokens = list(render(tokenize=True))
        except ContextLengthExceeded:
            raise
        except Exception as error:  # noqa: BLE001  templates are programs, and raise whatever they like
            failure = error
        else:
            return Prompt(tokens, thinking=_opens_thought(tokenizer, tokens))
    assert failure is not None, "there is always a rendering"
    raise failure


def _renderings(messages: list[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns in every way that templates may want them, the usual one first."""
    # Some templates take the arguments of calls for text, where the convention is an object.
    ways = [True, False] if any(message.tool_calls for message in messages) else [True]
    for variant in (messages, _fold_system(messages)):
        if variant is not None:
            yield from ([_turn(message, parsed=parsed) for message in variant] for parsed in ways)


def _turn(message: Message, *, parsed: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    for result in message.tool_results[:1]:
        turn["tool_call_id"] = result.call_id
        if result.name is not None:
            turn["name"] = result.name
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, parsed=parsed) for call in message.tool_calls]
    return turn


def _call(call: ToolCall, *, parsed: bool) -> dict[str, Any]:
    arguments: Any = call.arguments
    if parsed:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _fold_system(messages: list[Message]) -> list[Message] | None:
    """The messages with all system text moved into the first user turn; None if there is none to move."""
    system = [message.text for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    first = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    if not system or first is None:
        return None
    rest[first] = msgspec.structs.replace(
        rest[first], content=[TextPart(text="\n\n".join([*system, rest[first].text]))]
    )
    return rest


def _without_template(tokenizer: Any, chat: ChatPrompt, context_length: int | None) -> Prompt:
    text = "\n".join([*(f"{message.role}: {message.text}" for message in chat.messages), "assistant:"])
    length.check_text(tokenizer, text, context_length)
    return Prompt(list(tokenizer.encode(text)), [FALLBACK_STOP])


def _opens_thought(tokenizer: Any, tokens: list[int]) -> bool:
    return bool(tokenizer.has_thinking) and str(tokenizer.decode(tokens[-_TAIL:])).rstrip().endswith(
        tokenizer.think_start
    )


def _boundary(tokenizer: Any, chat: ChatPrompt, tokens: list[int]) -> int | None:
    last = next((at for at in reversed(range(len(chat.messages))) if chat.messages[at].role == "user"), None)
    if last is None:
        return None
    turn = chat.messages[last]
    other = msgspec.structs.replace(turn, content=[TextPart(text="1" if turn.text.startswith("0") else "0")])
    messages = [*chat.messages[:last], other, *chat.messages[last + 1 :]]
    try:
        others = _chat(tokenizer, msgspec.structs.replace(chat, messages=messages), None).tokens
    except InvalidRequest:
        return None
    pairs = enumerate(zip(tokens, others, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(tokens), len(others))) or None


# Text and tokens


def _text(tokenizer: Any, prompt: TextPrompt) -> list[int]:
    if prompt.suffix is not None:
        return infill.encode(tokenizer, prompt.text, prompt.suffix)
    tokens = list(tokenizer.encode(prompt.text))
    if tokens or prompt.text:
        return tokens
    # Nothing to continue: as at the beginning of a document, which follows the end of another.
    return [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]


def _known(tokenizer: Any, tokens: list[int]) -> list[int]:
    size = len(tokenizer)
    if wrong := next((token for token in tokens if not 0 <= token < size), None):
        raise InvalidRequest(
            f"this model's token ids range from 0 to {size - 1}, not {wrong}", location=("prompt", "tokens")
        )
    return tokens
