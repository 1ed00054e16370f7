"""Images in chats: how chat templates receive them, and the text that replaces their placeholders.

A template renders an image as a placeholder, such as `<image>`. Until then, a mark stands for the image in the text of
its message, so that rewriting the history for a template moves images with their text.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from osaurusd.inference.request import ChatPrompt, ContentPart, ImagePart, Message, TextPart, ToolResultPart
from osaurusd.worker.frontend.history import TemplateInput

_MARK = f"zqimage{secrets.token_hex(8)}"
# Within a placeholder that a user has typed, it prevents that the text is taken for an image.
_ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True)
class ImageTexts:
    """What the images of a chat become in its prompt.

    Attributes:
        placeholder: what a template renders for an image.
        token: the text of the token that stands for the features of an image.
        texts: for each image, what replaces its placeholder.
    """

    placeholder: str
    token: str
    texts: Sequence[str]

    def mark(self, chat: ChatPrompt) -> ChatPrompt:
        """Replace the images of a chat by marks, and change placeholders in its text so that they are not images."""
        chat = msgspec.structs.replace(chat, messages=[_mark_message(message) for message in chat.messages])
        return as_text(chat, self.placeholder, self.token)

    @property
    def forms(self) -> list[Callable[[TemplateInput], TemplateInput]]:
        """The forms in which a template may accept marked images: as parts of the content, or as placeholders in it."""
        return [_to_parts, lambda given: _convert(given, lambda text: text.replace(_MARK, self.placeholder))]

    def encode(self, tokenizer: Any, rendered: str) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of a rendered chat, and for each image the positions that stand for its features.

        Raises:
            ValueError: the template has not rendered every image.
        """
        before, *after = rendered.split(self.placeholder)
        if len(after) != len(self.texts):
            raise ValueError(f"it renders {len(after)} of {len(self.texts)} images")
        text = before + "".join(part for pair in zip(self.texts, after, strict=True) for part in pair)
        tokens = list(tokenizer.encode(text, add_special_tokens=False))
        token = tokenizer.convert_tokens_to_ids(self.token)
        positions = [position for position, each in enumerate(tokens) if each == token]
        counts = [text.count(self.token) for text in self.texts]
        if len(positions) != sum(counts):
            raise ValueError(f"its images have {len(positions)} tokens instead of {sum(counts)}")
        ends = [sum(counts[: index + 1]) for index in range(len(counts))]
        return tokens, [positions[end - count : end] for count, end in zip(counts, ends, strict=True)]


def as_text(chat: ChatPrompt, *placeholders: str) -> ChatPrompt:
    """Change the placeholders for images in the text of a chat so that they are not images."""
    for literal in dict.fromkeys(placeholders):
        if literal.encode() in msgspec.json.encode(chat):
            changed = _replace(msgspec.to_builtins(chat), literal, f"{literal[0]}{_ZERO_WIDTH_SPACE}{literal[1:]}")
            chat = msgspec.convert(changed, ChatPrompt)
        messages = [
            msgspec.structs.replace(message, content=_break_up(message.content, literal)) for message in chat.messages
        ]
        chat = msgspec.structs.replace(chat, messages=messages)
    return chat


def find_images(chat: ChatPrompt) -> Iterator[ImagePart]:
    """Yield the images of a chat in order, including those in the results of tools."""
    for message in chat.messages:
        for part in message.content:
            parts = part.content if isinstance(part, ToolResultPart) else [part]
            yield from (each for each in parts if isinstance(each, ImagePart))


def _mark_message(message: Message) -> Message:
    return msgspec.structs.replace(message, content=[_mark_part(part) for part in message.content])


def _mark_part(part: ContentPart) -> ContentPart:
    if isinstance(part, ImagePart):
        return TextPart(text=_MARK)
    if isinstance(part, ToolResultPart):
        content = [TextPart(text=_MARK) if isinstance(each, ImagePart) else each for each in part.content]
        return msgspec.structs.replace(part, content=content)
    return part


def _replace(value: Any, old: str, new: str) -> Any:
    """Replace a text in all strings of a JSON value."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_replace(each, old, new) for each in value]
    if isinstance(value, dict):
        return {key: _replace(each, old, new) for key, each in value.items()}
    return value


def _break_up(parts: Sequence[ContentPart], literal: str) -> list[Any]:
    """Change text parts that are a placeholder only together: templates render them without anything in between."""
    changed: list[ContentPart] = []
    before = ""
    for part in parts:
        if isinstance(part, ToolResultPart):
            changed.append(msgspec.structs.replace(part, content=_break_up(part.content, literal)))
            before = ""
        elif isinstance(part, TextPart):
            is_broken = literal in before + part.text
            changed.append(TextPart(text=_ZERO_WIDTH_SPACE + part.text) if is_broken else part)
            before = (part.text if is_broken else before + part.text)[1 - len(literal) :]
        else:
            changed.append(part)
            before = ""
    return changed


def _to_parts(given: TemplateInput) -> TemplateInput:
    """Turn content with images into lists of parts, as transformers defines them."""
    return _convert(given, lambda text: list(_split(text)) if _MARK in text else text)


def _split(text: str) -> Iterator[dict[str, str]]:
    for index, part in enumerate(text.split(_MARK)):
        if index:
            yield {"type": "image"}
        if part:
            yield {"type": "text", "text": part}


def _convert(given: TemplateInput, convert: Callable[[str], Any]) -> TemplateInput:
    """Convert the texts of messages; where one becomes a list, its parts are inserted into the content."""
    return given._replace(messages=[_convert_message(message, convert) for message in given.messages])


def _convert_message(message: dict[str, Any], convert: Callable[[str], Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": convert(content)}
    if not isinstance(content, list):
        return message
    parts: list[Any] = []
    for part in content:
        text = convert(part["text"]) if isinstance(part, dict) and part.get("type") == "text" else None
        if isinstance(text, list):
            parts += text
        else:
            parts.append(part if text is None else part | {"text": text})
    return message | {"content": parts}
