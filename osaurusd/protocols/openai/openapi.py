"""The OpenAPI 3.1 description of the client routes, generated from the types of bodies and the limits in force.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from osaurusd import __version__
from osaurusd.config import Input
from osaurusd.http.errors import STATUS, error_type
from osaurusd.inference import limits
from osaurusd.inference.limits import EACH, InputLimit
from osaurusd.inference.request import Location
from osaurusd.protocols.openai.chat import CHAT_PATHS, REASONING_EFFORTS
from osaurusd.protocols.openai.chat_types import NO_OP_VALUES, ChatCompletion, ChatCompletionChunk, ChatRequest
from osaurusd.protocols.openai.common import TOKEN_ID
from osaurusd.protocols.openai.completion_types import Completion, CompletionChunk, CompletionRequest
from osaurusd.protocols.openai.completions import COMPLETION_PATHS
from osaurusd.protocols.openai.messages import ROLES, TEXT_FIELDS
from osaurusd.protocols.openai.models import Model, ModelList
from osaurusd.protocols.openai.output_format import UNSUPPORTED
from osaurusd.protocols.openai.tools import MODES, REQUIRED
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

Schema = dict[str, Any]

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

ADMIN_ERRORS = frozenset(
    {
        ErrorCode.IMPORT_FAILED,
        ErrorCode.QUANTIZATION_FAILED,
        ErrorCode.BUSY,
        ErrorCode.NAME_TAKEN,
        ErrorCode.VERSION_MISMATCH,
        ErrorCode.PULL_FAILED,
        ErrorCode.DISK_FULL,
        ErrorCode.NOT_SERVING,
        ErrorCode.CONFIG_ERROR,
        ErrorCode.HOME_IN_USE,
        ErrorCode.LISTEN_FAILED,
    }
)
"""Errors of the admin API, and those that keep the daemon from starting."""

_REFERENCE = "#/components/schemas/{name}"

_DESCRIPTION = """\
OpenAI's API for models on this machine. Bodies are JSON in UTF-8. Fields that are neither OpenAI's nor described here
are ignored.
"""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `GET /health`."""

    status: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    Attributes:
        request, response, event: types of the request body, the response body and the events of a stream.
        media_type: of a response that has no type.
        versioned: whether the path also exists below `/v1`.
    """

    method: str
    path: str
    id: str
    summary: str
    request: type | None = None
    response: type | None = None
    event: type | None = None
    media_type: str = JSON
    examples: dict[str, Any] = {}
    versioned: bool = True


_MESSAGES = [{"role": "user", "content": "Say hello."}]
_MODEL = "llama-3.2-3b-instruct"
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

OPERATIONS = (
    Operation(
        method="get", path="/health", id="health", summary="Check that the daemon serves requests", response=Health
    ),
    Operation(method="get", path="/models", id="listModels", summary="List the available models", response=ModelList),
    Operation(
        method="get",
        path="/models/{model}",
        id="showModel",
        summary="Show one model by any of its names",
        response=Model,
    ),
    Operation(
        method="post",
        path="/chat/completions",
        id="createChatCompletion",
        summary="Complete a chat",
        request=ChatRequest,
        response=ChatCompletion,
        event=ChatCompletionChunk,
        examples={
            "chat": {"model": _MODEL, "messages": _MESSAGES},
            "stream": {
                "model": _MODEL,
                "messages": _MESSAGES,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            "tool": {"model": _MODEL, "messages": _MESSAGES, "tools": [_WEATHER], "tool_choice": "required"},
            "json": {"model": _MODEL, "messages": _MESSAGES, "response_format": {"type": "json_object"}},
        },
    ),
    Operation(
        method="post",
        path="/completions",
        id="createCompletion",
        summary="Complete one or more prompts",
        request=CompletionRequest,
        response=Completion,
        event=CompletionChunk,
        examples={
            "text": {"model": _MODEL, "prompt": "Once upon a time", "max_tokens": 16},
            "list": {"model": _MODEL, "prompt": ["One, two,", "Three, four,"], "max_tokens": 4},
        },
    ),
    Operation(
        method="get",
        path="/metrics",
        id="metrics",
        summary="Return metrics in Prometheus' text format",
        media_type="text/plain",
        versioned=False,
    ),
    Operation(
        method="get", path="/openapi.json", id="describe", summary="Return this description", response=dict[str, Any]
    ),
)

BODIES: Mapping[type, Mapping[Location, str]] = {ChatRequest: CHAT_PATHS, CompletionRequest: COMPLETION_PATHS}
"""The request bodies, and their fields by location."""

ENUMS: Mapping[tuple[str, str], list[str]] = {
    ("Message", "role"): list(ROLES),
    ("ContentPart", "type"): [*TEXT_FIELDS, "thinking"],
    ("ToolReference", "type"): ["function", "tool"],
    ("ToolCallParam", "type"): ["function", ""],
    ("ToolChoice", "type"): ["function", "tool", "allowed_tools", *MODES],
    ("AllowedTools", "mode"): ["auto", *REQUIRED],
    ("ResponseFormat", "type"): ["text", "json_object", "json_schema"],
    ("ChatRequest", "reasoning_effort"): list(REASONING_EFFORTS),
}
"""The values of string fields that handlers check themselves, by component and field."""


@lru_cache(maxsize=1)
def document(maxima: Input) -> bytes:
    """Return the description as JSON."""
    types = [type_ for each in OPERATIONS for type_ in (each.request, each.response, each.event) if _is_struct(type_)]
    _, components = msgspec.json.schema_components([*types, ErrorEnvelope], ref_template=_REFERENCE)
    _add_constraints(components, maxima)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "osaurusd", "version": __version__, "description": _DESCRIPTION},
            "servers": [{"url": "/v1"}, {"url": "/"}],
            "security": [{}, {"bearer": []}, {"key": []}],
            "paths": _paths(),
            "components": {
                "schemas": components,
                "responses": _error_responses(),
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _is_struct(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


# Paths


def _paths() -> dict[str, Any]:
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for each in OPERATIONS:
        paths[each.path][each.method] = _operation(each)
        if not each.versioned:
            paths[each.path]["servers"] = [{"url": "/"}]
    return paths


def _operation(operation: Operation) -> dict[str, Any]:
    errors = {str(status): {"$ref": f"#/components/responses/Error{status}"} for status in _codes_by_status()}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {"200": {"description": "Success", "content": _content(operation)}, **errors},
    }
    if "{model}" in operation.path:
        described["parameters"] = [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "Slashes of a repository id need not be escaped.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    if operation.request is not None:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        content = {JSON: {"schema": _reference(operation.request), "examples": examples}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _content(operation: Operation) -> dict[str, Any]:
    schema = {"type": "string"} if operation.response is None else _reference(operation.response)
    content = {operation.media_type: {"schema": schema}}
    if operation.event is not None:
        content[EVENT_STREAM] = {"schema": _event(operation.event)}
    return content


def _event(type_: type) -> Schema:
    """Describe one Server-Sent Event as OpenAPI 3.2 does; 3.1 does not define what the schema of a stream describes."""
    data = {
        "type": "string",
        "description": f"A {type_.__name__} as JSON, or an ErrorEnvelope, which ends the stream.",
        "contentMediaType": JSON,
        "contentSchema": {"anyOf": [_reference(type_), _reference(ErrorEnvelope)]},
    }
    end = {"const": "[DONE]", "description": "The last event of a stream without an error."}
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [end, data]}}}


def _reference(type_: Any) -> Schema:
    return {"$ref": _REFERENCE.format(name=type_.__name__)} if _is_struct(type_) else {"type": "object"}


# Errors


def _codes_by_status() -> dict[int, list[ErrorCode]]:
    codes: defaultdict[int, list[ErrorCode]] = defaultdict(list)
    for code, status in STATUS.items():
        if code not in ADMIN_ERRORS:
            codes[status].append(code)
    return codes


def _error_responses() -> dict[str, Any]:
    return {f"Error{status}": _error_response(status, codes) for status, codes in _codes_by_status().items()}


def _error_response(status: int, codes: list[ErrorCode]) -> dict[str, Any]:
    error = ErrorBody(message="What failed, why, and what to do.", type=error_type(status), code=codes[0])
    restriction = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    schema = {"allOf": [_reference(ErrorEnvelope), restriction]}
    response: dict[str, Any] = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {JSON: {"schema": schema, "example": msgspec.to_builtins(ErrorEnvelope(error))}},
    }
    if status == 429:
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    return response


# Constraints that the types do not express


def _add_constraints(components: dict[str, Schema], maxima: Input) -> None:
    components["ErrorBody"]["properties"]["code"] = {"enum": [None, *ErrorCode]}
    for (component, field), values in ENUMS.items():
        for form in _forms(components[component]["properties"][field], "string"):
            form["enum"] = values
    for field, accepted in NO_OP_VALUES.items():
        components["ChatRequest"]["properties"][field] = {
            "enum": [None, *accepted],
            "default": None,
            "description": "Not supported.",
        }
    for body, paths in BODIES.items():
        schema = components[body.__name__]
        for field in UNSUPPORTED:
            schema["properties"][field] = {"enum": [None, ""], "default": None, "description": "Not supported."}
        for form in _forms(schema["properties"]["logit_bias"], "object"):
            form["propertyNames"] = {"pattern": f"^(?:{TOKEN_ID})$"}
        for location, path in paths.items():
            for limit in limits.limits_at(location):
                for target in _find(components, schema, path):
                    _add_limit(target, limit, getattr(maxima, limit.key))


def _find(components: dict[str, Schema], schema: Schema, path: str) -> list[Schema]:
    """Return the schema of the field at a path such as `tools[{0}].function.name`.

    Where a list may also be given as its only item, the items at `[{0}]` include that form.
    """
    schemas = [schema]
    for step in re.sub(r"\[\{\d\}\]", f".{EACH}", path).split("."):
        schemas = [child for parent in schemas for child in _children(components, parent, step)]
    return schemas


def _children(components: dict[str, Schema], schema: Schema, step: str) -> list[Schema]:
    forms = [
        components[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
        for form in schema.get("anyOf", [schema])
    ]
    if step == EACH:
        items = [form["items"] for form in forms if "items" in form]
        return [*items, *(form for form in forms if form.get("type") == "string")]
    return [form["properties"][step] for form in forms if step in form.get("properties", {})]


def _add_limit(schema: Schema, limit: InputLimit, maximum: int) -> None:
    """Add the JSON Schema keyword of a limit, if there is one, and its description."""
    # A list of token ids is one prompt, so its length is not the number of prompts.
    if limit.measure is limits.magnitude:
        for form in [*_forms(schema, "integer"), *_forms(schema, "number")]:
            form["maximum"] = maximum
    elif limit.measure is len and limit.location != limits.PROMPTS:
        keywords = {"array": "maxItems", "object": "maxProperties", "string": "maxLength"}
        type_, keyword = next((type_, keyword) for type_, keyword in keywords.items() if _forms(schema, type_))
        for form in _forms(schema, type_):
            form[keyword] = maximum
    note = f"At most {maximum} {limit.unit} (`input.{limit.key}`)."
    schema["description"] = f"{schema.get('description', '')} {note}".strip()


def _forms(schema: Schema, type_: str) -> list[Schema]:
    """Return the alternatives of a schema that have a JSON type, except an empty list that stands for an object."""
    return [form for form in schema.get("anyOf", [schema]) if form.get("type") == type_ and form.get("maxItems") != 0]
