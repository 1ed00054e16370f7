"""`POST /api/embed` and the older `POST /api/embeddings`, from the body of the request to the response."""

import time
from typing import Annotated, cast

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from osaurusd.conversion import convert
from osaurusd.http.json import encode_list, json_response, read_json
from osaurusd.inference import limits
from osaurusd.inference.events import Completed
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.inference.request import TextPrompt, TokenPrompt
from osaurusd.inference.retrieval import EmbedRequest, Vectors
from osaurusd.inference.service import Service
from osaurusd.pool.pool import Pool
from osaurusd.protocols.ollama.generation import load_or_unload
from osaurusd.protocols.ollama.names import parse_keep_alive, strip_tag
from osaurusd.protocols.ollama.rendering import NANOSECONDS
from osaurusd.protocols.ollama.types import Duration, Options

_PATHS = {limits.MODEL: "model", ("dimensions",): "dimensions"}
EMBED_PATHS = FieldPaths({**_PATHS, limits.INPUTS: "input", (*limits.INPUTS, limits.EACH): "input[{0}]"})
"""The fields of an `EmbedBody` by their location in an `EmbedRequest`."""

EMBEDDINGS_PATHS = FieldPaths({**_PATHS, limits.INPUTS: "prompt"})
"""The fields of an `EmbeddingsBody` by their location in an `EmbedRequest`."""


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both requests. Null means the default. `options` are about generation and change nothing."""

    model: str | None = None
    options: Options | None = None
    keep_alive: Duration | None = None


class EmbedBody(_Body, frozen=True, kw_only=True):
    """Texts to embed. As in Ollama, texts that exceed the context are cut unless `truncate` is false."""

    input: str | list[str] = []
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None


class EmbeddingsBody(_Body, frozen=True, kw_only=True):
    """One text to embed. It is cut if it exceeds the context."""

    prompt: str | None = None


class EmbedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, and times in nanoseconds. `truncated` lists the inputs that were cut, if any were."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    truncated: list[int] | UnsetType = UNSET


class EmbeddingsResponse(msgspec.Struct, frozen=True, kw_only=True):
    embedding: list[float]


class Embeddings:
    """Handles the endpoints.

    Args:
        service: runs the requests.
        pool: loads and unloads models, and keeps them loaded.
    """

    def __init__(self, service: Service, pool: Pool) -> None:
        self._service = service
        self._pool = pool

    async def embed(self, request: web.Request) -> web.Response:
        body = await read_json(request, EmbedBody)
        started_at = time.monotonic()
        texts = [body.input] if isinstance(body.input, str) else body.input
        texts = [] if texts == [""] else texts
        with EMBED_PATHS.named():
            vectors, completed = await self._embed(
                body, texts, dimensions=body.dimensions or None, truncate=body.truncate is not False
            )
        response = EmbedResponse(
            model=body.model or "",
            embeddings=cast("list[list[float]]", await encode_list(vectors.numbers() if vectors else [])),
            total_duration=int((time.monotonic() - started_at) * NANOSECONDS),
            load_duration=int(completed.timings.load * NANOSECONDS) if completed else 0,
            prompt_eval_count=completed.usage.prompt_tokens if completed else 0,
            truncated=vectors.truncated if vectors and vectors.truncated else UNSET,
        )
        return json_response(response)

    async def embed_one(self, request: web.Request) -> web.Response:
        """Embed one text with the older endpoint."""
        body = await read_json(request, EmbeddingsBody)
        with EMBEDDINGS_PATHS.named():
            vectors, _ = await self._embed(body, [body.prompt] if body.prompt else [], dimensions=None, truncate=True)
        return json_response(EmbeddingsResponse(embedding=next(vectors.numbers()) if vectors else []))

    async def _embed(
        self, body: _Body, texts: list[str], *, dimensions: int | None, truncate: bool
    ) -> tuple[Vectors | None, Completed | None]:
        """Embed texts. A request without input only loads or unloads the model."""
        record = await self._service.find(strip_tag(body.model), "embed")
        keep_alive = parse_keep_alive(body.keep_alive)
        if not texts:
            await load_or_unload(self._pool, record, keep_alive)
            return None, None
        inputs = await convert(_text_prompts, texts)
        embed = EmbedRequest(inputs=inputs, dimensions=dimensions, truncate=truncate)
        result = await self._service.embed(record, embed)
        if keep_alive is not None:
            self._pool.set_keep_alive(record, keep_alive)
        return result


def _text_prompts(texts: list[str]) -> list[TextPrompt | TokenPrompt]:
    return [TextPrompt(text=text) for text in texts]
