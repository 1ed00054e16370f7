"""`POST /embeddings`, from the body of the request to the response."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, cast

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from osaurusd.conversion import convert
from osaurusd.errors import InvalidRequest
from osaurusd.http.json import encode_list, json_response, read_json
from osaurusd.inference import limits
from osaurusd.inference.request import Location, TextPrompt, TokenPrompt
from osaurusd.inference.retrieval import EmbedRequest, Vectors
from osaurusd.inference.service import Service
from osaurusd.protocols.openai.completion_types import TokenId
from osaurusd.protocols.openai.errors import FieldPaths

EMBEDDING_PATHS: Mapping[Location, str] = {
    limits.MODEL: "model",
    limits.INPUTS: "input",
    ("dimensions",): "dimensions",
    ("prompt_name",): "prompt_name",
}
"""The fields of an `EmbeddingRequest` by their location in an `EmbedRequest`."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an embedding request. Null means the default.

    `input` is a text, a list of token ids, or a list of such inputs. `truncate` cuts inputs that exceed the context;
    `prompt_name` selects the model's prompt that precedes each input. Both are extensions of this server.
    """

    input: str | list[str | TokenId | list[TokenId]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    truncate: bool | None = None
    prompt_name: str | None = None
    user: str | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input; with the format `base64`, its little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The response to an embedding request. With `truncate`, `truncated` lists the inputs that were cut."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    truncated: list[int] | UnsetType = UNSET


class Embeddings:
    """Handles the endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.Response:
        body = await read_json(request, EmbeddingRequest)
        inputs = await convert(parse_inputs, body.input)
        with (await convert(field_paths, body)).named():
            record = await self._service.find(body.model, "embed")
            embed = EmbedRequest(
                inputs=inputs,
                dimensions=body.dimensions,
                prompt_name=body.prompt_name,
                truncate=bool(body.truncate),
            )
            vectors, completed = await self._service.embed(record, embed)
        tokens = completed.usage.prompt_tokens
        response = EmbeddingList(
            data=cast("list[Embedding]", await encode_list(render(vectors, body.encoding_format))),
            model=record.name,
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
            truncated=vectors.truncated if body.truncate else UNSET,
        )
        return json_response(response)


def parse_inputs(value: str | list[str | int | list[int]]) -> list[TextPrompt | TokenPrompt]:
    """Convert `input`; a list of numbers is one input.

    Raises:
        InvalidRequest: there are no inputs, or text and token ids are mixed up.
    """
    if isinstance(value, str):
        return [TextPrompt(text=value)]
    if not value:
        raise InvalidRequest("`input`: must not be empty", param="input")
    numbers = [each for each in value if isinstance(each, int)]
    if len(numbers) == len(value):
        return [TokenPrompt(tokens=numbers)]
    return [_parse_input(each, f"input[{index}]") for index, each in enumerate(value)]


def field_paths(body: EmbeddingRequest) -> FieldPaths:
    """Return the paths of the body's fields, with the number of the input if there are several."""
    paths = dict(EMBEDDING_PATHS)
    if isinstance(body.input, list) and not all(isinstance(each, int) for each in body.input):
        paths[*limits.INPUTS, limits.EACH] = "input[{0}]"
    return FieldPaths(paths)


def render(vectors: Vectors, encoding_format: str | None) -> Iterator[Embedding]:
    """Yield the vectors in a format."""
    values: Iterable[list[float] | str] = vectors.numbers()
    if encoding_format == "base64":
        values = (base64.b64encode(row).decode() for row in vectors.rows())
    return (Embedding(index=index, embedding=value) for index, value in enumerate(values))


def _parse_input(value: str | int | list[int], path: str) -> TextPrompt | TokenPrompt:
    if isinstance(value, str):
        return TextPrompt(text=value)
    if isinstance(value, int):
        raise InvalidRequest(f"`{path}`: must be a string or a list of token ids", param=path)
    return TokenPrompt(tokens=value)
