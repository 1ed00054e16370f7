"""The operations that the OpenAPI description lists, with their bodies and examples."""

from typing import Any

import msgspec

from osaurusd.protocols.openai.chat_types import ChatCompletion, ChatCompletionChunk, ChatRequest
from osaurusd.protocols.openai.completion_types import Completion, CompletionChunk, CompletionRequest
from osaurusd.protocols.openai.decision_types import Decision, DecisionRequest
from osaurusd.protocols.openai.embeddings import EmbeddingList, EmbeddingRequest
from osaurusd.protocols.openai.models import Model, ModelList
from osaurusd.protocols.openai.rerank import RerankBody, RerankResponse

JSON = "application/json"


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
_EMBEDDER = "all-minilm-l6-v2"
_RERANKER = "bge-reranker-v2-m3"
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
        method="post",
        path="/embeddings",
        id="createEmbedding",
        summary="Embed one or more texts",
        request=EmbeddingRequest,
        response=EmbeddingList,
        examples={
            "text": {"model": _EMBEDDER, "input": "A man is eating food."},
            "list": {"model": _EMBEDDER, "input": ["One text.", "Another text."], "encoding_format": "base64"},
        },
    ),
    Operation(
        method="post",
        path="/rerank",
        id="rerank",
        summary="Sort documents by their relevance to a query",
        request=RerankBody,
        response=RerankResponse,
        examples={
            "documents": {
                "model": _RERANKER,
                "query": "What do pandas eat?",
                "documents": ["Pandas eat bamboo.", "The sun is a star."],
                "top_n": 1,
                "return_documents": True,
            },
        },
    ),
    Operation(
        method="post",
        path="/decisions",
        id="createDecision",
        summary="Return the probabilities of answers to typed questions about an input",
        request=DecisionRequest,
        response=Decision,
        examples={
            "questions": {
                "model": _MODEL,
                "input": "I was charged twice for my subscription.",
                "questions": [
                    {"type": "predicate", "name": "refund", "instructions": "The customer should get money back."},
                    {
                        "type": "choice",
                        "name": "team",
                        "instructions": "Which team should handle the message?",
                        "choices": [{"value": "billing"}, {"value": "support", "description": "technical problems"}],
                    },
                    {
                        "type": "score",
                        "name": "urgency",
                        "instructions": "How urgent is the message?",
                        "levels": [{"label": "low"}, {"label": "medium"}, {"label": "high"}],
                    },
                ],
            },
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
