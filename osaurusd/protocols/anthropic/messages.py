"""Converts the messages of a conversation. One of Anthropic's can become several: results of tools have their own."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from osaurusd.errors import InvalidRequest, OsaurusError, UnsupportedParameter
from osaurusd.inference import request as neutral
from osaurusd.inference.images import ImageCollector
from osaurusd.protocols.anthropic.types import Content, ContentBlock, Message, PromptBody
from osaurusd.wire.errors import as_json

BILLING_PREFIX = "x-anthropic-billing-header:"
"""Claude Code begins the system prompt with a block that differs in every request, which no cached prefix survives."""

ROLES = ("user", "assistant", "system")

_BLOCK_SEPARATOR = "\n\n"
_IGNORED_IN_ANSWERS = frozenset({"redacted_thinking"})
_ERROR = neutral.TextPart(text="Error: ")


Part = neutral.TextPart | neutral.ImagePart

_IMAGE_SOURCES = {"base64": "data", "url": "url"}
"""The types of sources of an image, and the field with the image."""


class _History:
    """What has been collected from the messages so far.

    Attributes:
        tool_names: the names of the tools by the ids of their uses.
    """

    def __init__(self, images: ImageCollector) -> None:
        self.images = images
        self.tool_names: dict[str, str] = {}


class Located(NamedTuple):
    """A message, and the path of the field that it comes from."""

    message: neutral.Message
    path: str


def parse_messages(body: PromptBody, images: ImageCollector) -> list[Located]:
    """Convert the system prompt and the messages, and collect their images.

    Raises:
        InvalidRequest: a role or a block is invalid.
        UnsupportedParameter: a block is of an unsupported type.
    """
    if not body.messages:
        raise InvalidRequest("`messages`: at least one message is required", param="messages")
    history = _History(images)
    located = _parse_system(body.system)
    for index, message in enumerate(body.messages):
        path = f"messages[{index}]"
        located += [Located(parsed, path) for parsed in _parse_message(message, path, history)]
    if located[-1].message.tool_calls:
        raise InvalidRequest(
            f"`{path}.content`: ends with a tool use; add a user message with its `tool_result`",
            param=f"{path}.content",
        )
    return located


def _parse_system(system: Content | None) -> list[Located]:
    blocks, start = _blocks(system), 0
    if blocks and blocks[0].type == "text" and (blocks[0].text or "").startswith(BILLING_PREFIX):
        start = 1
    parts = _separated(_text(blocks[index], f"system[{index}]") for index in range(start, len(blocks)))
    return [Located(neutral.Message(role="system", content=[*parts]), "system")] if parts else []


def _parse_message(message: Message, path: str, history: _History) -> list[neutral.Message]:
    blocks = _blocks(message.content)
    match message.role:
        case "assistant":
            return [_parse_answer(blocks, f"{path}.content", history)]
        case "user":
            return _parse_user(blocks, f"{path}.content", history)
        case "system":
            return [neutral.Message(role="system", content=[*_parse_parts(blocks, f"{path}.content")])]
    allowed = ", ".join(f"`{role}`" for role in ROLES)
    raise InvalidRequest(
        f"`{path}.role`: must be one of {allowed}, not {as_json(message.role[:100])}", param=f"{path}.role"
    )


def _parse_user(blocks: list[ContentBlock], path: str, history: _History) -> list[neutral.Message]:
    """Convert a user message; results of tools come first, as they follow the uses."""
    results: list[neutral.Message] = []
    others: list[str | neutral.ImagePart] = []
    for index, block in enumerate(blocks):
        if block.type == "tool_result":
            results.append(_parse_result(block, f"{path}[{index}]", history))
        else:
            others.append(_text_or_image(block, f"{path}[{index}]", history.images))
    parts = _separated(others)
    return results if results and not parts else [*results, neutral.Message(role="user", content=[*parts])]


def _parse_result(block: ContentBlock, path: str, history: _History) -> neutral.Message:
    call_id = _required(block.tool_use_id, f"{path}.tool_use_id")
    parts = _parse_parts(_blocks(block.content), f"{path}.content", history.images)
    is_error = block.is_error is True
    result = neutral.ToolResultPart(
        call_id=call_id,
        name=history.tool_names.get(call_id),
        # Chat templates have no other way to tell the model.
        content=[_ERROR, *parts] if is_error else [*parts],
        is_error=is_error,
    )
    return neutral.Message(role="tool", content=[result])


def _parse_answer(blocks: list[ContentBlock], path: str, history: _History) -> neutral.Message:
    """Convert an assistant message. Signatures of thinking are not checked."""
    texts: list[neutral.ContentPart] = []
    thinking: list[str] = []
    calls: list[neutral.ToolCall] = []
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        match block.type:
            case "thinking":
                thinking.append(block.thinking or "")
            case "tool_use":
                calls.append(_parse_call(block, where))
                history.tool_names[calls[-1].id] = calls[-1].name
            case other if other not in _IGNORED_IN_ANSWERS:
                if text := _text(block, where):
                    texts.append(neutral.TextPart(text=text))
    return neutral.Message(role="assistant", content=texts, reasoning="".join(thinking) or None, tool_calls=calls)


def _parse_call(block: ContentBlock, path: str) -> neutral.ToolCall:
    arguments = msgspec.json.encode(block.input or {}).decode()
    call_id, name = _required(block.id, f"{path}.id"), _required(block.name, f"{path}.name")
    return neutral.ToolCall(id=call_id, name=name, arguments=arguments)


def _blocks(content: Content | None) -> list[ContentBlock]:
    if isinstance(content, str):
        return [ContentBlock(type="text", text=content)]
    return content or []


def _parse_parts(blocks: list[ContentBlock], path: str, images: ImageCollector | None = None) -> list[Part]:
    return _separated(_text_or_image(block, f"{path}[{index}]", images) for index, block in enumerate(blocks))


def _separated(contents: Iterable[str | neutral.ImagePart]) -> list[Part]:
    """Return the images, and the texts that are not empty; texts in a row are separated by blank lines."""
    parts: list[Part] = []
    for content in contents:
        if isinstance(content, neutral.ImagePart):
            parts.append(content)
        elif content:
            follows_text = bool(parts) and isinstance(parts[-1], neutral.TextPart)
            parts.append(neutral.TextPart(text=_BLOCK_SEPARATOR + content if follows_text else content))
    return parts


def _text_or_image(block: ContentBlock, path: str, images: ImageCollector | None) -> str | neutral.ImagePart:
    """Return the text of a block, or the image, which only some messages may have."""
    if block.type != "image" or images is None:
        return _text(block, path)
    source = block.source if isinstance(block.source, dict) else {}
    for kind, field in _IMAGE_SOURCES.items():
        if source.get("type") == kind:
            value = source.get(field)
            if not isinstance(value, str):
                raise InvalidRequest(f"`{path}.source.{field}`: must be a string", param=f"{path}.source.{field}")
            return images.add(value, f"{path}.source.{field}")
    allowed = " or ".join(f"`{kind}`" for kind in _IMAGE_SOURCES)
    raise InvalidRequest(f"`{path}.source.type`: must be {allowed}", param=f"{path}.source.type")


def _text(block: ContentBlock, path: str) -> str:
    """Return the text of a block."""
    match block.type:
        case "text":
            return _required(block.text, f"{path}.text")
        case "document" if isinstance(block.source, dict) and block.source.get("type") == "text":
            title = f"{block.title}\n" if block.title else ""
            return title + str(block.source.get("data", ""))
    raise _unsupported(block.type, path)


def _unsupported(type_: str, path: str) -> OsaurusError:
    if type_ == "image":
        return InvalidRequest(f"`{path}`: only user messages and results of tools can have images", param=path)
    if type_ == "document":
        return UnsupportedParameter(
            f"`{path}.source`: only documents of the type `text` are supported; send text", param=f"{path}.source"
        )
    return UnsupportedParameter(
        f"`{path}.type`: blocks of the type {as_json(type_[:100])} are not supported here", param=f"{path}.type"
    )


def _required(value: str | None, path: str) -> str:
    if value is None:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    return value
