"""Reading tool calls from the model's output."""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from osaurusd.inference.events import ToolCallDelta
from osaurusd.inference.request import TEXT_ARGUMENT, Tool
from osaurusd.json_text import replace_lone_surrogates
from osaurusd.worker.frontend.template_tools import template_tool

# Arguments are streamed in chunks of this many characters.
ARGUMENTS_CHUNK = 40

# Llama models start a call with this token.
_PYTHON_TAG = "<|python_tag|>"
_FENCES = ("```json", "```")
_FIRST_KEYS = ('{"name"', '{"type"', '{"function"', '{"arguments"', '{"parameters"', '{"id"')
_WHITESPACE = re.compile(r"\s+")
# Enough characters for everything that a model writes before the first key of a call.
_OPENING_LENGTH = 64

_CALL_PREFIX = re.compile(r'\}?\s*\{"name": ("(?:[^"\\]|\\.)*"), "(?:arguments": |input":(\n))')

_TEXT_START, _TEXT_END = f'{{"{TEXT_ARGUMENT}": "', '"}'

Parser = Callable[[str, list[dict[str, Any]]], Any]
"""mlx_lm's parser of a model's own format: takes the text between the markers and the tools, returns calls."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class ToolCallParser:
    """Parses calls of the given tools. Returns None for any other text.

    Args:
        tools: the request's tools.
        parser: mlx_lm's parser of the model's own format, if there is one. Without it, calls are JSON.
    """

    def __init__(self, tools: Sequence[Tool], parser: Parser | None = None) -> None:
        self._template_tools = [template_tool(tool) for tool in tools]
        self._names = {tool.name for tool in tools}
        self._parser = parser

    def parse_block(self, text: str) -> list[ParsedCall] | None:
        """Parse the text between two markers."""
        return self._validate(self._parse(text))

    def parse_output(self, text: str) -> list[ParsedCall] | None:
        """Parse a complete output without markers, bare or in a code fence."""
        return self._validate(_load_json(_strip_decoration(text)), require_arguments=True)

    def _parse(self, text: str) -> Any:
        if self._parser is not None:
            try:
                return self._parser(text, self._template_tools)
            except Exception:  # noqa: BLE001  mlx_lm's parsers raise many kinds of errors on malformed output
                pass
        return _load_json(text)

    def _validate(self, parsed: Any, *, require_arguments: bool = False) -> list[ParsedCall] | None:
        items = parsed if isinstance(parsed, list) else [parsed]
        calls = [call for item in items if (call := self._validate_one(item, require_arguments)) is not None]
        return calls if calls and len(calls) == len(items) else None

    def _validate_one(self, item: Any, require_arguments: bool) -> ParsedCall | None:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item["name"] not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters", None if require_arguments else {}))
        if isinstance(arguments, str):
            arguments = _load_json(arguments)
        text = _dump_json(arguments) if isinstance(arguments, dict) else None
        return None if text is None else ParsedCall(item["name"], text)


def may_be_calls(text: str) -> bool:
    """Whether an output that starts with `text` may still turn out to consist of calls only."""
    rest = text[:_OPENING_LENGTH].lstrip()
    for opening in (_PYTHON_TAG, *_FENCES):
        if opening.startswith(rest):
            return True
        rest = rest.removeprefix(opening).lstrip()
    rest = _WHITESPACE.sub("", rest).removeprefix("[")
    return any(key.startswith(rest) or rest.startswith(key) for key in _FIRST_KEYS)


def call_deltas(call: ParsedCall, index: int) -> Iterator[ToolCallDelta]:
    """Yield the deltas of a complete call: its name first, then its arguments in chunks."""
    yield _first_delta(call.name, index)
    for start in range(0, len(call.arguments), ARGUMENTS_CHUNK):
        yield ToolCallDelta(index=index, arguments=call.arguments[start : start + ARGUMENTS_CHUNK])


class CallStreamer:
    """Reads calls from text that a grammar keeps in the fallback format.

    The first call is streamed while the model generates it. A later one is reported when it is complete: only then is
    it certain that it differs from the earlier ones. The argument of the last call may be text up to the end of the
    output, which becomes a JSON object.

    Attributes:
        repeated: a call was identical to an earlier one, which ends the output. It is not reported.
    """

    def __init__(self) -> None:
        self.repeated = False
        self._prefix = ""
        self._name = ""
        self._text = ""
        self._calls: list[tuple[str, str]] = []
        self._arguments: ObjectScanner | None = None
        self._is_text = False

    def feed(self, text: str) -> list[ToolCallDelta]:
        """Consume generated text and return the deltas that it completes."""
        deltas: list[ToolCallDelta] = []
        while text and not self.repeated:
            if self._is_text:
                deltas += self._read_text(text)
                break
            read = self._read_prefix if self._arguments is None else self._read_arguments
            text = read(text, deltas)
        return deltas

    def finish(self) -> list[ToolCallDelta]:
        """End the output, and return the deltas that are left."""
        if not self._is_text:
            return []
        self._is_text = False
        self._text += _TEXT_END
        if not self._calls:
            return [ToolCallDelta(index=0, arguments=_TEXT_END)]
        return list(self._end_call())

    def _read_text(self, text: str) -> Iterator[ToolCallDelta]:
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]
        self._text += escaped
        if not self._calls:
            yield ToolCallDelta(index=0, arguments=escaped)

    def _read_prefix(self, text: str, deltas: list[ToolCallDelta]) -> str:
        self._prefix += text
        match = _CALL_PREFIX.match(self._prefix)
        if match is None:
            return ""
        rest = self._prefix[match.end() :]
        self._prefix = self._text = ""
        self._name = json.loads(match[1])
        self._is_text = match[2] is not None
        self._arguments = ObjectScanner()
        if not self._calls:
            deltas.append(_first_delta(self._name, 0))
        if self._is_text:
            self._text = _TEXT_START
            if not self._calls:
                deltas.append(ToolCallDelta(index=0, arguments=_TEXT_START))
        return rest

    def _read_arguments(self, text: str, deltas: list[ToolCallDelta]) -> str:
        assert self._arguments is not None
        end = self._arguments.find_end(text)
        self._text += text[:end]
        if not self._calls:
            deltas.append(ToolCallDelta(index=0, arguments=text[:end]))
        if end is None:
            return ""
        self._arguments = None
        deltas += self._end_call()
        return text[end:]

    def _end_call(self) -> Iterator[ToolCallDelta]:
        call = (self._name, json.dumps(json.loads(self._text), sort_keys=True))
        self.repeated = call in self._calls
        if self._calls and not self.repeated:
            yield from call_deltas(ParsedCall(self._name, self._text), len(self._calls))
        self._calls.append(call)


class ObjectScanner:
    """Finds the end of a JSON object that arrives in chunks. The chunks must form valid JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find_end(self, text: str) -> int | None:
        """Return the index in `text` after the object's closing brace, or None if the object continues."""
        for index, character in enumerate(text):
            if self._in_string:
                self._step_in_string(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None

    def _step_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False


def _first_delta(name: str, index: int) -> ToolCallDelta:
    return ToolCallDelta(index=index, id=f"call_{secrets.token_hex(12)}", name=name)


def _strip_decoration(text: str) -> str:
    text = text.strip().removeprefix(_PYTHON_TAG).strip()
    for fence in _FENCES:
        if text.startswith(fence) and text.endswith("```"):
            return text.removeprefix(fence).removesuffix("```")
    return text


def _load_json(text: str) -> Any:
    """Parse JSON; return None for any other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dump_json(arguments: dict[str, Any]) -> str | None:
    """Encode arguments as JSON. Return None for values without a JSON form, such as NaN, which parsers may accept."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which would make the chat unusable as a history
        return replace_lone_surrogates(json.dumps(arguments).encode()).decode()
    except (ValueError, TypeError, RecursionError):
        return None
    return text
