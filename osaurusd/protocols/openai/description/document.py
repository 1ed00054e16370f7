"""The OpenAPI description of the client routes, made of the types that requests are read into and answers written from.

OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.1.html
"""

from collections import defaultdict
from functools import lru_cache
from typing import Any

import msgspec

from osaurusd import __version__
from osaurusd.config import Input
from osaurusd.http.errors import STATUS, error_type
from osaurusd.protocols.openai.description.operations import EVENTS, JSON, OPERATIONS, Operation
from osaurusd.protocols.openai.description.refine import refine
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

_REFERENCE = "#/components/schemas/{name}"

ELSEWHERE = frozenset(
    {
        ErrorCode.IMPORT_FAILED,
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
"""Errors of the admin API, and those for which the daemon does not start."""

# Types of the same name in two modules are told apart by these, which mean nothing to clients.
_PLAIN = {b"osaurusd.protocols.openai.schema.chat.": b"Asked", b"osaurusd.protocols.openai.render.chat.": b"Answered"}

_ABOUT = """\
OpenAI's API over models on this machine. Fields that are not OpenAI's and not described are ignored. Bodies are UTF-8
JSON.
"""


@lru_cache(maxsize=1)
def document(limits: Input) -> bytes:
    """The description as JSON, under these limits."""
    types = [kind for one in OPERATIONS for kind in (one.request, one.reply, one.event) if _is_ours(kind)]
    _, components = msgspec.json.schema_components([*types, ErrorEnvelope], ref_template=_REFERENCE)
    refine(components, limits)
    components["ErrorBody"]["properties"]["code"] = {"enum": [None, *ErrorCode]}
    described = {
        "openapi": "3.1.0",
        "info": {"title": "osaurusd", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": _paths(),
        "components": {
            "schemas": components,
            "responses": _errors(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    text = msgspec.json.encode(described)
    for module, word in _PLAIN.items():
        text = text.replace(module, word)
    return text


def _is_ours(kind: type | None) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _paths() -> dict[str, Any]:
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for one in OPERATIONS:
        paths[one.path][one.method] = _operation(one)
        if not one.everywhere:
            paths[one.path]["servers"] = [{"url": "/"}]
    return paths


def _operation(one: Operation) -> dict[str, Any]:
    errors = {str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in _by_status()}
    found: dict[str, Any] = {
        "operationId": one.id,
        "summary": one.summary,
        "responses": {"200": {"description": "It went well.", "content": _content(one)}, **errors},
    }
    if "{model}" in one.path:
        found["parameters"] = [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "Slashes of a repo id stand as they are.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    if one.request is not None:
        examples = {name: {"value": value} for name, value in one.examples.items()}
        content = {JSON: {"schema": _schema(one.request), "examples": examples}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _content(one: Operation) -> dict[str, Any]:
    content = {one.media: {"schema": {"type": "string"} if one.reply is None else _schema(one.reply)}}
    if one.event is not None:
        content[EVENTS] = {"schema": _event(one.event)}
    return content


def _event(kind: type) -> dict[str, Any]:
    """One Server-Sent Event as OpenAPI 3.2 would have it; 3.1 leaves open what the schema of a stream is about."""
    written = {
        "type": "string",
        "description": f"With `stream`: a {kind.__name__} as JSON, or an ErrorEnvelope, which is the last one.",
        "contentMediaType": JSON,
        "contentSchema": {"anyOf": [_schema(kind), _schema(ErrorEnvelope)]},
    }
    data = {"anyOf": [{"const": "[DONE]", "description": "The end."}, written]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _schema(kind: Any) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)} if _is_ours(kind) else {"type": "object"}


def _by_status() -> dict[int, list[ErrorCode]]:
    found: defaultdict[int, list[ErrorCode]] = defaultdict(list)
    for code, status in STATUS.items():
        if code not in ELSEWHERE:
            found[status].append(code)
    return found


def _name(status: int) -> str:
    return f"Error{status}"


def _errors() -> dict[str, Any]:
    return {_name(status): _error(status, codes) for status, codes in _by_status().items()}


def _error(status: int, codes: list[ErrorCode]) -> dict[str, Any]:
    body = ErrorBody(message="What is wrong, and what would be right.", type=error_type(status), code=codes[0])
    example = ErrorEnvelope(body)
    only = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    schema = {"allOf": [_schema(ErrorEnvelope), only]}
    answer = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {JSON: {"schema": schema, "example": msgspec.to_builtins(example)}},
    }
    if status == 429:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    return answer
