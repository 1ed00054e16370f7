"""`POST /rerank`, from the body of the request to the response. The format is that of Jina and Cohere."""

import uuid
from collections.abc import Mapping
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from osaurusd.conversion import convert
from osaurusd.errors import InvalidRequest
from osaurusd.http.json import json_response, read_json
from osaurusd.inference import limits
from osaurusd.inference.request import Location
from osaurusd.inference.retrieval import RerankRequest, Scores
from osaurusd.inference.service import Service
from osaurusd.protocols.openai.embeddings import EmbeddingUsage
from osaurusd.protocols.openai.errors import FieldPaths

RERANK_PATHS: Mapping[Location, str] = {
    limits.MODEL: "model",
    limits.DOCUMENTS: "documents",
    (*limits.DOCUMENTS, limits.EACH): "documents[{0}]",
    ("query",): "query",
    ("instruction",): "instruction",
}
"""The fields of a `RerankBody` by their location in a `RerankRequest`."""

PATHS = FieldPaths(RERANK_PATHS)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a rerank request. Null means the default.

    `instruction` and `truncate` are extensions of this server: what counts as relevant, for models that accept an
    instruction, and whether to cut documents that exceed the context.
    """

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    instruction: str | None = None
    truncate: bool | None = None


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """A document: its index in the request, and its relevance from 0 to 1."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a rerank request, the most relevant document first.

    With `truncate`, `truncated` has the indexes of the documents that were cut.
    """

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    truncated: list[int] | UnsetType = UNSET


class Rerank:
    """Handles the endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.Response:
        body = await read_json(request, RerankBody)
        documents = await convert(_texts, body.documents)
        if not documents:
            raise InvalidRequest("`documents`: must not be empty", param="documents")
        with PATHS.named():
            record = await self._service.find(body.model, "rerank")
            rerank = RerankRequest(
                query=body.query,
                documents=documents,
                instruction=body.instruction,
                truncate=bool(body.truncate),
            )
            scores, completed = await self._service.rerank(record, rerank)
        tokens = completed.usage.prompt_tokens
        response = RerankResponse(
            id=f"rerank-{uuid.uuid4().hex}",
            model=record.name,
            results=rank(scores, documents if body.return_documents else None)[: body.top_n],
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
            truncated=scores.truncated if body.truncate else UNSET,
        )
        return json_response(response)


def _texts(documents: list[str | Document]) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in documents]


def rank(scores: Scores, documents: list[str] | None) -> list[RerankResult]:
    """Return the results, the most relevant document first; with the documents if they are given."""
    order = sorted(range(len(scores.values)), key=lambda index: -scores.values[index])
    return [
        RerankResult(
            index=index,
            relevance_score=scores.values[index],
            document=UNSET if documents is None else Document(text=documents[index]),
        )
        for index in order
    ]
