"""From chat messages to prompt tokens: the model's chat template, or a plain fallback."""

from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from osaurusd import ipc
from osaurusd.errors import ContextLengthExceeded, InvalidRequest

FALLBACK_STOP = "\nuser:"


@dataclass(frozen=True)
class Prompt:
    """Prompt tokens, and the stop strings that the way of prompting needs."""

    tokens: list[int]
    stop: list[str] = field(default_factory=list)


def encode(tokenizer: Any, messages: list[ipc.Message], context_length: int | None) -> Prompt:
    """Render and tokenize a chat.

    A template that rejects the system role gets the system text at the beginning of the first user turn. A model
    without a template gets one `role: text` line a turn.

    Raises:
        InvalidRequest: the template refuses the messages, or nothing is left of them.
        ContextLengthExceeded: the prompt leaves no room for an answer.
    """
    render = _with_template if tokenizer.has_chat_template else _without_template
    prompt = render(tokenizer, messages)
    count = len(prompt.tokens)
    if count == 0:
        raise InvalidRequest("the messages render to an empty prompt; say something in them", param="messages")
    if context_length is not None and count >= context_length:
        raise ContextLengthExceeded(
            f"this model's context length is {context_length} tokens, but the messages are {count} tokens "
            "and the answer needs room too; shorten the messages",
            param="messages",
        )
    return prompt


def _with_template(tokenizer: Any, messages: list[ipc.Message]) -> Prompt:
    try:
        return _apply(tokenizer, messages)
    except TemplateError as error:
        folded = _fold_system(messages)
        if folded is None:
            raise _refused(error) from error
    try:
        return _apply(tokenizer, folded)
    except TemplateError as error:
        raise _refused(error) from error


def _apply(tokenizer: Any, messages: list[ipc.Message]) -> Prompt:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return Prompt(list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)))


def _refused(error: TemplateError) -> InvalidRequest:
    return InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages")


def _fold_system(messages: list[ipc.Message]) -> list[ipc.Message] | None:
    """The messages with all system text moved into the first user turn; None if there is none to move."""
    system = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    first = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    if not system or first is None:
        return None
    rest[first] = ipc.Message(role="user", content="\n\n".join([*system, rest[first].content]))
    return rest


def _without_template(tokenizer: Any, messages: list[ipc.Message]) -> Prompt:
    turns = [f"{message.role}: {message.content}" for message in messages]
    return Prompt(list(tokenizer.encode("\n".join([*turns, "assistant:"]))), [FALLBACK_STOP])
