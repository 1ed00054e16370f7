"""The OpenAPI 3.1 description of the client routes, generated from the types of bodies and the limits in force.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import web

from osaurusd import __version__
from osaurusd.config import Config, Input
from osaurusd.http.errors import STATUS, error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.wire.errors import ErrorCode

Schema = dict[str, Any]

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"

PREFIXES = ("", "/v1")

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
"""Errors of the admin API, and those that keep the daemon from starting. Few other routes have them."""

_PARAMETER = re.compile(r"\{(\w+)\}")

_DESCRIPTION = """\
The APIs of OpenAI, Anthropic and Ollama for models on this machine. Bodies are JSON in UTF-8. Fields that are neither
part of these APIs nor described here are ignored.
"""


class Query(msgspec.Struct, frozen=True):
    """A parameter of the query string."""

    name: str
    schema: Schema
    description: str


class Stream(msgspec.Struct, frozen=True):
    """What a streamed response consists of.

    Attributes:
        types: of the items. Server-Sent Events have them as data.
        media_type: how items are delimited.
        end: the data of the last event of a stream without an error, if it has no item.
    """

    types: Sequence[type[msgspec.Struct]]
    media_type: str = EVENT_STREAM
    end: str | None = None


class Operation(msgspec.Struct, frozen=True):
    """One method of one path.

    Attributes:
        request, response: types of the bodies.
        stream: what the response is if it is streamed.
        media_type: of a response that has no type; None if it has no body.
        versioned: whether the path also exists below `/v1`.
        query: the parameters of the query string.
    """

    method: str
    path: str
    id: str
    summary: str
    request: type[msgspec.Struct] | None = None
    response: Any = None
    stream: Stream | None = None
    media_type: str | None = JSON
    examples: Mapping[str, Any] = msgspec.field(default_factory=dict)
    versioned: bool = True
    query: Sequence[Query] = ()

    @property
    def types(self) -> Iterator[type[msgspec.Struct]]:
        """The types that need a component."""
        types = [self.request, self.response, *(self.stream.types if self.stream is not None else ())]
        yield from filter(_is_struct, types)


class Api(msgspec.Struct, frozen=True, eq=False):
    """What is described about one API.

    Attributes:
        operations: its operations.
        error: the type of its error responses.
        error_example: makes an error response from a status and the codes that have it.
        error_restriction: returns the schema of these error responses besides that of their type.
        errors: the errors of these operations among `ADMIN_ERRORS`.
        prefix: the beginning of the names of its components.
        refine: adds to the components what their types do not express, given the limits in force.
    """

    operations: Sequence[Operation]
    error: type[msgspec.Struct]
    error_example: Callable[[int, list[ErrorCode]], msgspec.Struct]
    error_restriction: Callable[[int, list[ErrorCode]], Schema] = lambda _, __: {}
    errors: frozenset[ErrorCode] = frozenset()
    prefix: str = ""
    refine: Callable[[dict[str, Schema], Input], None] = lambda _, __: None


def openapi_routes(apis: Sequence[Api], config: Callable[[], Config]) -> RouteGroup:
    """Create the group with the route of the description.

    Args:
        apis: what is described.
        config: returns the configuration in force.
    """
    described = tuple(apis)

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=document(described, config().input), content_type=JSON)

    return RouteGroup("openapi", [Route("GET", "/openapi.json", describe)], error_response, PREFIXES)


@lru_cache(maxsize=2)
def document(apis: tuple[Api, ...], maxima: Input) -> bytes:
    """Return the description as JSON."""
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    schemas: dict[str, Schema] = {}
    responses: dict[str, Any] = {}
    for api in apis:
        description = _Description(api)
        schemas |= description.components(maxima)
        responses |= description.error_responses()
        for operation in api.operations:
            paths[operation.path][operation.method] = description.operation(operation)
            if not operation.versioned:
                paths[operation.path]["servers"] = [{"url": "/"}]
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "osaurusd", "version": __version__, "description": _DESCRIPTION},
            "servers": [{"url": "/v1"}, {"url": "/"}],
            "security": [{}, {"bearer": []}, {"key": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": responses,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _is_struct(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


class _Description:
    """Describes the parts of one API."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._reference = f"#/components/schemas/{api.prefix}{{name}}"

    def components(self, maxima: Input) -> dict[str, Schema]:
        types = [type_ for operation in self._api.operations for type_ in operation.types]
        _, components = msgspec.json.schema_components([*types, self._api.error], ref_template=self._reference)
        self._api.refine(components, maxima)
        return {f"{self._api.prefix}{name}": schema for name, schema in components.items()}

    def operation(self, operation: Operation) -> dict[str, Any]:
        errors = {str(status): {"$ref": self._error_reference(status)} for status in self._codes_by_status()}
        success: dict[str, Any] = {"description": "Success"}
        if operation.media_type is not None:
            success["content"] = self._content(operation)
        described: dict[str, Any] = {
            "operationId": operation.id,
            "summary": operation.summary,
            "responses": {"200": success, **errors},
        }
        if parameters := _parameters(operation):
            described["parameters"] = parameters
        if operation.request is not None:
            examples = {name: {"value": value} for name, value in operation.examples.items()}
            content = {JSON: {"schema": self._refer(operation.request), "examples": examples}}
            described["requestBody"] = {"required": True, "content": content}
        return described

    def error_responses(self) -> dict[str, Any]:
        return {
            f"{self._api.prefix}Error{status}": self._error_response(status, codes)
            for status, codes in self._codes_by_status().items()
        }

    def _content(self, operation: Operation) -> dict[str, Any]:
        schema = {"type": "string"} if operation.response is None else self._refer(operation.response)
        content = {str(operation.media_type): {"schema": schema}}
        if operation.stream is not None:
            content[operation.stream.media_type] = {"schema": self._item(operation.stream)}
        return content

    def _item(self, stream: Stream) -> Schema:
        """Describe one item as OpenAPI 3.2 does; 3.1 does not define what the schema of a stream describes."""
        either = {"anyOf": [self._refer(type_) for type_ in (*stream.types, self._api.error)]}
        if stream.media_type != EVENT_STREAM:
            return either
        names = ", ".join(type_.__name__ for type_ in stream.types)
        data: Schema = {
            "type": "string",
            "description": f"{names} as JSON, or {self._api.error.__name__}, which ends the stream.",
            "contentMediaType": JSON,
            "contentSchema": either,
        }
        if stream.end is not None:
            end = {"const": stream.end, "description": "The last event of a stream without an error."}
            data = {"anyOf": [end, data]}
        return {"type": "object", "required": ["data"], "properties": {"data": data}}

    def _refer(self, type_: Any) -> Schema:
        return {"$ref": self._reference.format(name=type_.__name__)} if _is_struct(type_) else {"type": "object"}

    def _codes_by_status(self) -> dict[int, list[ErrorCode]]:
        codes: defaultdict[int, list[ErrorCode]] = defaultdict(list)
        for code, status in STATUS.items():
            if code not in ADMIN_ERRORS - self._api.errors:
                codes[status].append(code)
        return codes

    def _error_reference(self, status: int) -> str:
        return f"#/components/responses/{self._api.prefix}Error{status}"

    def _error_response(self, status: int, codes: list[ErrorCode]) -> dict[str, Any]:
        restriction = self._api.error_restriction(status, codes)
        type_ = self._refer(self._api.error)
        example = msgspec.to_builtins(self._api.error_example(status, codes))
        response: dict[str, Any] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": {
                JSON: {"schema": {"allOf": [type_, restriction]} if restriction else type_, "example": example}
            },
        }
        if status in (429, 503):
            response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
        return response


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": "Slashes of a repository id need not be escaped." if name == "model" else "An id.",
            "schema": {"type": "string", "minLength": 1},
        }
        for name in _PARAMETER.findall(operation.path)
    ]
    query = [
        {"name": each.name, "in": "query", "description": each.description, "schema": each.schema}
        for each in operation.query
    ]
    return [*path, *query]
