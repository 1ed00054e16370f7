"""Parses the format that a request demands of its output: `response_format`, and the fields of other servers for it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.limits import EACH
from osaurusd.inference.request import JsonObject, JsonSchema, Location, OutputConstraint, TextChoice
from osaurusd.protocols.openai.chat_types import ChatRequest, ResponseFormat
from osaurusd.protocols.openai.common import RequestBody
from osaurusd.wire.errors import as_json

UNSUPPORTED = ("ebnf", "grammar", "guided_grammar", "guided_regex", "regex")
"""Fields of other servers for formats that are not supported."""

_STRUCTURED_OUTPUTS = ("json", "json_object", "choice")


class OutputFormat(NamedTuple):
    """A format, and the path of the field that demands it."""

    path: str | None = None
    constraint: OutputConstraint | None = None


def parse_output_format(body: RequestBody, defaults: RequestDefaults) -> OutputFormat:
    """Return the format of the output.

    Raises:
        InvalidRequest: a format is invalid, or there are several.
        UnsupportedParameter: the request uses an unsupported format.
    """
    for name in UNSUPPORTED:
        if getattr(body, name):
            raise _unsupported(name)
    formats = list(_formats(body, describe=defaults.describe_schema))
    if len(formats) > 1:
        raise InvalidRequest(
            f"`{formats[1].path}`: cannot be combined with `{formats[0].path}`; send one of them", param=formats[1].path
        )
    return formats[0] if formats else OutputFormat()


def output_paths(body: RequestBody) -> dict[Location, str]:
    """Return the path of the schema or the choices in the field that the body uses."""
    response_format = _response_format(body)
    for path, present in (
        ("response_format.json_schema.schema", response_format and response_format.json_schema is not None),
        ("response_format.schema", response_format and response_format.schema is not None),
        ("guided_json", body.guided_json),
        ("guided_choice", body.guided_choice),
        ("structured_outputs", body.structured_outputs),
        ("json_schema", body.json_schema),
        ("format", body.format),
    ):
        if present:
            return {limits.SCHEMA: path, limits.CHOICES: path, (*limits.CHOICES, EACH): path, ("constraint",): path}
    return {}


def _response_format(body: RequestBody) -> ResponseFormat | None:
    return body.response_format if isinstance(body, ChatRequest) else None


def _formats(body: RequestBody, *, describe: bool) -> Iterator[OutputFormat]:
    if response_format := _response_format(body):
        constraint = _parse_response_format(response_format, describe=describe)
        if constraint is not None:
            yield OutputFormat("response_format", constraint)
    parsers: Mapping[str, Callable[..., OutputConstraint]] = {
        "guided_json": _parse_schema,
        "guided_choice": _parse_choices,
        "structured_outputs": _parse_structured_outputs,
        "json_schema": _parse_schema,
        "format": _parse_format,
    }
    for name, parse in parsers.items():
        # Clients send an empty value if their user sets none.
        if value := getattr(body, name):
            yield OutputFormat(name, parse(value, name, describe=describe))


def _parse_response_format(response_format: ResponseFormat, *, describe: bool) -> JsonObject | JsonSchema | None:
    path = "response_format"
    match response_format.type:
        case "text":
            return None
        case "json_schema":
            return _parse_json_schema(response_format, describe=describe)
        case "json_object":
            if response_format.json_schema is not None or response_format.schema is not None:
                return _parse_json_schema(response_format, describe=describe)
            return JsonObject(describe=describe)
    raise InvalidRequest(
        f"`{path}.type`: must be `text`, `json_object` or `json_schema`, not {as_json(response_format.type)}",
        param=f"{path}.type",
    )


def _parse_json_schema(response_format: ResponseFormat, *, describe: bool) -> JsonSchema:
    path = "response_format.json_schema"
    if response_format.json_schema is not None:
        schema = response_format.json_schema.schema
    elif response_format.schema is not None:
        schema = response_format.schema
    else:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    if schema is None:
        raise InvalidRequest(f"`{path}.schema`: is required", param=f"{path}.schema")
    return JsonSchema(schema=dict(schema), describe=describe)


def _parse_schema(value: Any, path: str, *, describe: bool) -> JsonSchema:
    """Parse a schema, or one as JSON text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(f"`{path}`: is not valid JSON: {error}", param=path) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{path}`: must be a JSON schema, which is an object", param=path)
    return JsonSchema(schema=value, describe=describe)


def _parse_choices(value: Any, path: str, *, describe: bool) -> TextChoice:
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice for choice in value):
        raise InvalidRequest(f"`{path}`: must be a list of non-empty strings", param=path)
    return TextChoice(choices=value, describe=describe)


def _parse_structured_outputs(value: Any, path: str, *, describe: bool) -> OutputConstraint:
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{path}`: must be an object", param=path)
    used = [name for name in value if value[name]]
    if unsupported := [name for name in used if name not in _STRUCTURED_OUTPUTS]:
        raise _unsupported(f"{path}.{unsupported[0]}")
    match used:
        case ["json"]:
            return _parse_schema(value["json"], f"{path}.json", describe=describe)
        case ["choice"]:
            return _parse_choices(value["choice"], f"{path}.choice", describe=describe)
        case ["json_object"]:
            return JsonObject(describe=describe)
    allowed = ", ".join(f"`{name}`" for name in _STRUCTURED_OUTPUTS)
    raise InvalidRequest(f"`{path}`: must have exactly one of {allowed}", param=path)


def _parse_format(value: Any, path: str, *, describe: bool) -> JsonObject | JsonSchema:
    if value == "json":
        return JsonObject(describe=describe)
    if isinstance(value, dict):
        return JsonSchema(schema=value, describe=describe)
    raise InvalidRequest(f"`{path}`: must be `json` or a JSON schema", param=path)


def _unsupported(path: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"`{path}` is not supported; use `response_format` with a JSON schema, or omit it", param=path
    )
