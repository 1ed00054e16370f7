"""The limits of `[input]` on the parts of a generation request.

`LIMITS` is the only list of them: requests are checked against it, and protocols derive their API descriptions from it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import msgspec

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import GenerationRequest, Location, ScoringRequest

EACH = "*"
"""In a location pattern: every item of a list."""


def magnitude(value: int) -> int:
    """Return a number unchanged: it is its own size."""
    return value


def json_bytes(value: object) -> int:
    """Return the size of a value as JSON."""
    try:
        return len(msgspec.json.encode(value))
    except RecursionError:
        return sys.maxsize


def tool_bytes(tools: list[Any]) -> int:
    """Return the size of the parameters of all tools: they may become one grammar, so they share one limit."""
    schemas = sum(json_bytes(tool.parameters) for tool in tools if tool.parameters is not None)
    return schemas + sum(len(tool.grammar) for tool in tools if tool.grammar is not None)


def json_depth(value: object) -> int:
    """Return how deeply objects and arrays are nested. Every level costs stack wherever the value is processed."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


class InputLimit(NamedTuple):
    """One limit.

    Attributes:
        key: the key in `[input]`.
        location: pattern of the locations in a `GenerationRequest` that the limit applies to.
        unit: what is counted.
        measure: computes the number that must not exceed the limit.
    """

    key: str
    location: Location
    unit: str
    measure: Callable[[Any], int] = len


MODEL: Location = ("model",)
"""The name of the model, which is not part of a `GenerationRequest`."""

PROMPTS: Location = ("prompts",)
"""The prompts of one client request, each of which becomes a `GenerationRequest`."""

QUESTIONS: Location = ("questions",)
"""The questions of a decision."""

INPUTS: Location = ("inputs",)
"""The texts of an embedding request."""

DOCUMENTS: Location = ("documents",)
"""The documents of a rerank request."""

MESSAGES: Location = ("prompt", "messages")
MESSAGE: Location = (*MESSAGES, EACH)
TOOL_CALL: Location = (*MESSAGE, "tool_calls", EACH)
TOOL_RESULT: Location = (*MESSAGE, "tool_results", EACH)
TEMPLATE_VARIABLES: Location = ("prompt", "template_variables")
SCHEMA: Location = ("constraint", "schema")
CHOICES: Location = ("constraint", "choices")
LOGIT_BIAS: Location = ("sampling", "logit_bias")
TOOLS: Location = ("prompt", "tools")
TOOL_PARAMETERS: Location = (*TOOLS, EACH, "parameters")

LIMITS = (
    InputLimit("max_name_length", MODEL, "characters"),
    InputLimit("max_prompts", PROMPTS, "prompts"),
    InputLimit("max_question_bytes", QUESTIONS, "bytes of JSON", json_bytes),
    InputLimit("max_inputs", INPUTS, "inputs"),
    InputLimit("max_inputs", DOCUMENTS, "documents"),
    InputLimit("max_messages", MESSAGES, "messages"),
    InputLimit("max_parts", (*MESSAGE, "content"), "parts"),
    InputLimit("max_name_length", (*MESSAGE, "name"), "characters"),
    InputLimit("max_tool_calls", (*MESSAGE, "tool_calls"), "tool calls"),
    InputLimit("max_name_length", (*TOOL_CALL, "id"), "characters"),
    InputLimit("max_name_length", (*TOOL_CALL, "name"), "characters"),
    InputLimit("max_name_length", (*TOOL_RESULT, "call_id"), "characters"),
    InputLimit("max_name_length", (*TOOL_RESULT, "name"), "characters"),
    InputLimit("max_parts", (*TOOL_RESULT, "content"), "parts"),
    InputLimit("max_tools", TOOLS, "tools"),
    InputLimit("max_schema_bytes", TOOLS, "bytes of JSON schemas", tool_bytes),
    InputLimit("max_schema_depth", TOOL_PARAMETERS, "levels", json_depth),
    InputLimit("max_schema_bytes", TEMPLATE_VARIABLES, "bytes of JSON", json_bytes),
    InputLimit("max_schema_depth", TEMPLATE_VARIABLES, "levels", json_depth),
    InputLimit("max_schema_bytes", SCHEMA, "bytes of JSON", json_bytes),
    InputLimit("max_schema_depth", SCHEMA, "levels", json_depth),
    InputLimit("max_schema_bytes", CHOICES, "bytes of JSON", json_bytes),
    InputLimit("max_choices", ("n",), "choices", magnitude),
    InputLimit("max_stop_strings", ("stop",), "stop strings"),
    InputLimit("max_stop_length", ("stop", EACH), "characters"),
    InputLimit("max_top_logprobs", ("logprobs",), "alternatives", magnitude),
    InputLimit("max_logit_bias", LOGIT_BIAS, "entries"),
)


def limits_at(location: Location) -> list[InputLimit]:
    """Return the limits whose pattern is exactly `location`."""
    return [limit for limit in LIMITS if limit.location == location]


def check_request(request: GenerationRequest | ScoringRequest, maxima: Input) -> None:
    """Check a request against every limit.

    Raises:
        InvalidRequest: a part exceeds its limit; the message has the limit and its key.
    """
    for limit in LIMITS:
        values = _select(request, limit.location)
        maximum = getattr(maxima, limit.key)
        if values and max(map(limit.measure, values)) > maximum:
            # Locations are computed only now, so that checking long chats stays cheap.
            located = _select_with_locations(request, limit.location)
            raise next(
                _exceeded(limit, maximum, size, location)
                for location, value in located
                if (size := limit.measure(value)) > maximum
            )


def check_value(location: Location, value: Any, maxima: Input) -> None:
    """Check a value that is not part of a `GenerationRequest`, such as `MODEL`.

    Raises:
        InvalidRequest: the value exceeds a limit at `location`.
    """
    for limit in limits_at(location):
        maximum = getattr(maxima, limit.key)
        if (size := limit.measure(value)) > maximum:
            raise _exceeded(limit, maximum, size, location)


def check_lengths(parts: Mapping[Location, Sized | None], maxima: Input) -> None:
    """Check the lengths of lists and objects in a body before it is converted, which takes long if they are too long.

    Raises:
        InvalidRequest: one is too long.
    """
    for location, part in parts.items():
        for limit in limits_at(location):
            maximum = getattr(maxima, limit.key)
            if part is not None and limit.measure is len and len(part) > maximum:
                raise _exceeded(limit, maximum, len(part), location)


def _exceeded(limit: InputLimit, maximum: int, size: int, location: Location) -> InvalidRequest:
    return InvalidRequest(f"at most {maximum} {limit.unit}, not {size} (`input.{limit.key}`)", location=location)


def _select(request: object, pattern: Location) -> list[Any]:
    """Return the values at the locations that match; absent ones are left out."""
    values: list[Any] = [request]
    for step in pattern:
        if step == EACH:
            values = [item for value in values for item in value]
        else:
            name = str(step)
            values = [child for value in values if (child := getattr(value, name, None)) is not None]
    return values


def _select_with_locations(value: Any, pattern: Location, start: Location = ()) -> Iterator[tuple[Location, Any]]:
    if not pattern:
        yield start, value
        return
    step, *rest = pattern
    if step == EACH:
        for index, item in enumerate(value):
            yield from _select_with_locations(item, tuple(rest), (*start, index))
    elif (child := getattr(value, str(step), None)) is not None:
        yield from _select_with_locations(child, tuple(rest), (*start, step))
