"""Converts input items to the messages of a chat."""

import base64
import binascii
import uuid
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.http.json import convert_json
from osaurusd.inference import limits
from osaurusd.inference import request as neutral
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.request import Location
from osaurusd.protocols.openai.messages import IMAGE_TYPES, ROLES, TEXT_FIELDS, Part, check_image_role, clean_arguments
from osaurusd.protocols.openai.responses.tools import custom_arguments, qualified_name
from osaurusd.protocols.openai.responses.types import Item
from osaurusd.wire.errors import as_json

_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
}

RESPONSE_PREFIX = "resp"
CONVERSATION_PREFIX = "conv"
"""The prefixes of the ids of stored objects."""

_OPAQUE_PREFIX = "osaurus1:"
_SUMMARY = "Summary of the conversation so far:"


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


Content = str | list[ContentPart]


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    role: str
    content: Content


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    call_id: str
    name: str
    input: str
    namespace: str | None = None


class CallOutputItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    call_id: str
    output: Content


class ReasoningPart(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    text: str = ""


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Reasoning of an earlier response. The first of its three forms that has text counts."""

    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    summary: list[ReasoningPart] | None = None

    @property
    def text(self) -> str:
        content = "".join(part.text for part in self.content or [])
        summary = "\n\n".join(part.text for part in self.summary or [])
        return content or decode_opaque(self.encrypted_content) or summary


class CompactionItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    encrypted_content: str


def encode_opaque(text: str) -> str:
    """Encode text for a field whose content clients only send back. It is not encrypted."""
    return _OPAQUE_PREFIX + base64.b64encode(text.encode()).decode()


def decode_opaque(value: str | None) -> str:
    """Return the text, or an empty string if another server encoded it."""
    if not value or not value.startswith(_OPAQUE_PREFIX):
        return ""
    try:
        return base64.b64decode(value.removeprefix(_OPAQUE_PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def item_type(item: Item) -> str | None:
    """Return the type of an item; messages need not state theirs."""
    type_ = item.get("type")
    if type_ is None and "role" in item:
        return "message"
    return type_ if isinstance(type_, str) else None


def input_items(value: str | list[Item] | None) -> list[Item]:
    """Return the input as items, each with a type and an id."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return [_complete(item) for item in value or []]


def _complete(item: Item) -> Item:
    type_ = item_type(item)
    completed = {**item, "type": type_} if type_ is not None else item
    if not completed.get("id") and type_ in _ID_PREFIXES:
        completed = {**completed, "id": new_id(_ID_PREFIXES[type_])}
    if type_ == "message":
        completed = {"status": "completed", **completed}
    if type_ == "message" and isinstance(content := item.get("content"), str):
        part_type = "output_text" if item.get("role") == "assistant" else "input_text"
        part: Item = {"type": part_type, "text": content}
        if part_type == "output_text":
            part["annotations"] = []
        completed = {**completed, "content": [part]}
    return completed


class ParsedItems(msgspec.Struct, frozen=True, kw_only=True):
    """Messages, and the fields of the request that they come from."""

    messages: list[neutral.Message]
    paths: Mapping[Location, str]


def parse_items(
    items: Sequence[Item], paths: Sequence[str], instructions: str | None, images: ImageCollector | None
) -> ParsedItems:
    """Convert items to messages.

    Instructions and the `system` and `developer` messages at the beginning become one message, because many chat
    templates accept only one. Reasoning, text and calls of one turn become one message of the assistant.

    Args:
        items: the items of the conversation, oldest first.
        paths: the field that each item comes from.
        instructions: text that precedes them.
        images: collects the images of the items; None rejects them.

    Raises:
        InvalidRequest: an item is invalid.
        UnsupportedParameter, ImageInputUnsupported: an item uses an unsupported feature.
    """
    builder = _Builder(instructions, images)
    for item, path in zip(items, paths, strict=True):
        builder.add(item, path)
    return builder.build()


class _Turn:
    """The message of the assistant that is being assembled."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reasoning = ""
        self.content: list[neutral.ContentPart] = []
        self.calls: list[neutral.ToolCall] = []


class _Builder:
    """Assembles messages from items."""

    def __init__(self, instructions: str | None, images: ImageCollector | None) -> None:
        self._system = [instructions] if instructions else []
        self._images = images
        self._messages: list[neutral.Message] = []
        self._paths: list[str] = []
        self._turn: _Turn | None = None
        self._names: dict[str, str] = {}

    def add(self, item: Item, path: str) -> None:
        match item_type(item):
            case "message":
                self._add_message(convert_json(item, MessageItem, path), path)
            case "reasoning":
                self._add_reasoning(convert_json(item, ReasoningItem, path), path)
            case "function_call":
                call = convert_json(item, FunctionCallItem, path)
                self._add_call(call, clean_arguments(call.arguments), path)
            case "custom_tool_call":
                custom = convert_json(item, CustomCallItem, path)
                self._add_call(custom, custom_arguments(custom.input), path)
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(convert_json(item, CallOutputItem, path), path)
            case "compaction":
                self._add_summary(convert_json(item, CompactionItem, path), path)
            case type_:
                allowed = ", ".join(f"`{name}`" for name in _ID_PREFIXES)
                shown = item.get("type") if type_ is None else type_
                raise InvalidRequest(
                    f"`{path}.type`: must be one of {allowed}, not {as_json(shown)}", param=f"{path}.type"
                )

    def build(self) -> ParsedItems:
        self._end_turn()
        messages, paths = self._messages, self._paths
        if self._system:
            messages = [neutral.Message.from_text("system", "\n\n".join(self._system)), *messages]
            paths = ["instructions", *paths]
        if all(message.role == "system" for message in messages):
            # Some clients check a server with an empty input, which most chat templates reject.
            messages, paths = [*messages, neutral.Message(role="user")], [*paths, "input"]
        return ParsedItems(
            messages=messages,
            paths={(*limits.MESSAGES, index): path for index, path in enumerate(paths)},
        )

    def _append(self, message: neutral.Message, path: str) -> None:
        self._end_turn()
        self._messages.append(message)
        self._paths.append(path)

    def _add_message(self, item: MessageItem, path: str) -> None:
        role = ROLES.get(item.role)
        if role is None or role == "tool":
            allowed = "`system`, `developer`, `user`, `assistant`"
            raise InvalidRequest(
                f"`{path}.role`: must be one of {allowed}, not {as_json(item.role)}", param=f"{path}.role"
            )
        content = self._parse_content(item.content, f"{path}.content", role)
        if role == "assistant":
            turn = self._open_turn(path)
            if turn.content or turn.calls:
                self._end_turn()
                turn = self._open_turn(path)
            turn.content += content
        elif role == "system":
            self._add_system("".join(part.text for part in content if isinstance(part, neutral.TextPart)), path)
        else:
            self._append(neutral.Message(role=role, content=[*content]), path)

    def _add_system(self, text: str, path: str) -> None:
        if self._messages or self._turn is not None:
            self._append(neutral.Message.from_text("system", text), path)
        else:
            self._system.append(text)

    def _add_summary(self, item: CompactionItem, path: str) -> None:
        summary = decode_opaque(item.encrypted_content)
        if not summary:
            path = f"{path}.encrypted_content"
            raise InvalidRequest(f"`{path}`: must be from `POST /responses/compact` of this server", param=path)
        self._add_system(f"{_SUMMARY}\n\n{summary}", path)

    def _add_reasoning(self, item: ReasoningItem, path: str) -> None:
        turn = self._open_turn(path)
        if turn.content or turn.calls:
            self._end_turn()
            turn = self._open_turn(path)
        turn.reasoning += item.text

    def _add_call(self, item: FunctionCallItem | CustomCallItem, arguments: str, path: str) -> None:
        name = qualified_name(item.name, item.namespace)
        self._names[item.call_id] = name
        self._open_turn(path).calls.append(neutral.ToolCall(id=item.call_id, name=name, arguments=arguments))

    def _add_output(self, item: CallOutputItem, path: str) -> None:
        result = neutral.ToolResultPart(
            call_id=item.call_id,
            name=self._names.get(item.call_id),
            content=self._parse_content(item.output, f"{path}.output", "tool"),
        )
        self._append(neutral.Message(role="tool", content=[result]), path)

    def _parse_content(self, content: Content, path: str, role: neutral.Role) -> list[Part]:
        if isinstance(content, str):
            return [neutral.TextPart(text=content)] if content else []
        return [self._parse_part(part, f"{path}[{index}]", role) for index, part in enumerate(content)]

    def _parse_part(self, part: ContentPart, path: str, role: neutral.Role) -> Part:
        if part.type not in IMAGE_TYPES or self._images is None:
            return neutral.TextPart(text=_part_text(part, path))
        check_image_role(role, path)
        if part.file_id is not None:
            raise UnsupportedParameter(f"`{path}.file_id`: is not supported; use `image_url`", param=f"{path}.file_id")
        if part.image_url is None:
            raise InvalidRequest(f"`{path}.image_url`: is required in an image part", param=f"{path}.image_url")
        return self._images.add(part.image_url, f"{path}.image_url", part.detail)

    def _open_turn(self, path: str) -> _Turn:
        if self._turn is None:
            self._turn = _Turn(path)
        return self._turn

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None or not (turn.reasoning or turn.content or turn.calls):
            return
        self._messages.append(
            neutral.Message(
                role="assistant", content=turn.content, reasoning=turn.reasoning or None, tool_calls=turn.calls
            )
        )
        self._paths.append(turn.path)


def _part_text(part: ContentPart, path: str) -> str:
    text: str | None = getattr(part, TEXT_FIELDS[part.type]) if part.type in TEXT_FIELDS else None
    return _reject_part(part, path) if text is None else text


def _reject_part(part: ContentPart, path: str) -> NoReturn:
    if part.type in TEXT_FIELDS:
        field = f"{path}.{TEXT_FIELDS[part.type]}"
        raise InvalidRequest(f"`{field}`: is required in a text part", param=field)
    if part.type in IMAGE_TYPES:
        raise ImageInputUnsupported(f"`{path}`: images are not supported here; send text parts only", param=path)
    if part.type in ("input_file", "input_audio"):
        raise UnsupportedParameter(f"`{path}`: files and audio are not supported; send text parts only", param=path)
    allowed = "`input_text`, `input_image` or `output_text`"
    raise InvalidRequest(f"`{path}.type`: must be {allowed}, not {as_json(part.type)}", param=path)
