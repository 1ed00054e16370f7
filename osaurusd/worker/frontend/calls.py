"""From what a model wrote to the calls it makes."""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from osaurusd.inference.events import ToolCallDelta
from osaurusd.inference.request import Tool
from osaurusd.worker.frontend.tools import template_tool

# Long arguments are told in pieces of this many characters.
PIECE = 40

# Llama marks calls so.
_PYTHON_TAG = "<|python_tag|>"
_FENCES = ("```json", "```")
_FIRST_KEYS = ('{"name"', '{"type"', '{"function"', '{"arguments"', '{"parameters"', '{"id"')
_SPACE = re.compile(r"\s+")
# Enough of an answer to hold all that is put before the first key.
_OPENING = 64

_HEAD = re.compile(r'\}?\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')

Parser = Callable[[str, list[dict[str, Any]]], Any]
"""mlx_lm's parser of a model's own format: the text between the markers, and the tools, to one call or a list."""


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class CallReader:
    """Reads calls of the given tools. Whatever is not one, it leaves alone.

    Args:
        parser: of the model's own format, if mlx_lm has one; else blocks are JSON.
    """

    def __init__(self, tools: Sequence[Tool], parser: Parser | None = None) -> None:
        self._tools = [template_tool(tool) for tool in tools]
        self._names = {tool.name for tool in tools}
        self._parser = parser

    def block(self, text: str) -> list[Call] | None:
        """The calls in the text between the markers; None if that is not what it is."""
        return self._calls(self._parsed(text))

    def whole(self, text: str) -> list[Call] | None:
        """The calls that an answer without markers consists of, plain or in a fence; None if it does not."""
        return self._calls(_json(_bare(text)), arguments_needed=True)

    def _parsed(self, text: str) -> Any:
        if self._parser is not None:
            try:
                return self._parser(text, self._tools)
            except Exception:  # noqa: BLE001  parsers fail on what a model makes up in more ways than they name
                pass
        return _json(text)

    def _calls(self, parsed: Any, *, arguments_needed: bool = False) -> list[Call] | None:
        found = parsed if isinstance(parsed, list) else [parsed]
        calls = [call for item in found if (call := self._call(item, arguments_needed)) is not None]
        return calls if calls and len(calls) == len(found) else None

    def _call(self, item: Any, arguments_needed: bool) -> Call | None:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item["name"] not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters", None if arguments_needed else {}))
        if isinstance(arguments, str):
            arguments = _json(arguments)
        text = _dumped(arguments) if isinstance(arguments, dict) else None
        return None if text is None else Call(item["name"], text)


def may_be_whole(text: str) -> bool:
    """Whether an answer that begins so may still turn out to be calls as a whole."""
    rest = text[:_OPENING].lstrip()
    for opening in (_PYTHON_TAG, *_FENCES):
        if opening.startswith(rest):
            return True
        rest = rest.removeprefix(opening).lstrip()
    rest = _SPACE.sub("", rest).removeprefix("[")
    return any(key.startswith(rest) or rest.startswith(key) for key in _FIRST_KEYS)


def _bare(text: str) -> str:
    text = text.strip().removeprefix(_PYTHON_TAG).strip()
    for fence in _FENCES:
        if text.startswith(fence) and text.endswith("```"):
            return text.removeprefix(fence).removesuffix("```")
    return text


def _json(text: str) -> Any:
    """What the text says as JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dumped(arguments: dict[str, Any]) -> str | None:
    """The arguments as JSON; None if there is no such JSON, for parsers may read Python's values, and NaN."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON has only as an escape
        return json.dumps(arguments)
    except (ValueError, TypeError, RecursionError):
        return None
    return text


def told(call: Call, index: int) -> Iterator[ToolCallDelta]:
    """A complete call as it is sent: its name, then its arguments in pieces."""
    yield begun(call.name, index)
    for at in range(0, len(call.arguments), PIECE):
        yield ToolCallDelta(index=index, arguments=call.arguments[at : at + PIECE])


def begun(name: str, index: int) -> ToolCallDelta:
    """The first that is sent of a call."""
    return ToolCallDelta(index=index, id=f"call_{secrets.token_hex(12)}", name=name)


class LiveCalls:
    """Tells calls while they are generated, from text that a constraint keeps in the form of `tools.head`."""

    def __init__(self) -> None:
        self._head = ""
        self._index = -1
        self._arguments: ObjectScanner | None = None

    def feed(self, text: str) -> list[ToolCallDelta]:
        deltas: list[ToolCallDelta] = []
        while text:
            read = self._read_head if self._arguments is None else self._read_arguments
            text = read(text, deltas)
        return deltas

    def _read_head(self, text: str, deltas: list[ToolCallDelta]) -> str:
        self._head += text
        head = _HEAD.match(self._head)
        if head is None:
            return ""
        rest = self._head[head.end() :]
        self._head = ""
        self._index += 1
        self._arguments = ObjectScanner()
        deltas.append(begun(json.loads(head[1]), self._index))
        return rest

    def _read_arguments(self, text: str, deltas: list[ToolCallDelta]) -> str:
        assert self._arguments is not None
        end = self._arguments.end(text)
        deltas.append(ToolCallDelta(index=self._index, arguments=text[:end]))
        if end is None:
            return ""
        self._arguments = None
        return text[end:]


class ObjectScanner:
    """Finds the end of a JSON object that arrives in pieces. What is fed must be JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Where in `text` the object ends; None if it goes on."""
        for at, character in enumerate(text):
            if self._quoted:
                self._step_quoted(character)
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None

    def _step_quoted(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False
