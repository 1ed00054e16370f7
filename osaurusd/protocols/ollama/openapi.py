"""What the OpenAPI description has about Ollama's API."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from osaurusd.http.openapi import NDJSON, Api, Operation, Stream
from osaurusd.protocols.ollama.embeddings import EmbedBody, EmbeddingsBody, EmbeddingsResponse, EmbedResponse
from osaurusd.protocols.ollama.errors import ErrorLine
from osaurusd.protocols.ollama.management import CopyRequest, CreateRequest, PullBody
from osaurusd.protocols.ollama.models import ModelBody, RunningList, ShowRequest, ShowResponse, TagList, Version
from osaurusd.protocols.ollama.types import ChatRequest, GenerateRequest, ResponseMessage, TokenLogprob
from osaurusd.wire.errors import ErrorCode

_MODEL = "llama-3.2-3b-instruct"
_EMBEDDER = "all-minilm-l6-v2"
_MESSAGES = [{"role": "user", "content": "Say hello."}]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an output, or the whole. The last one has the metrics; durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatLine(Line, frozen=True, kw_only=True):
    message: ResponseMessage


class GenerateLine(Line, frozen=True, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a download."""

    status: str
    digest: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    status: str


def _operation(method: str, name: str, summary: str, **fields: Any) -> Operation:
    return Operation(method, f"/api/{name}", f"ollama{name.capitalize()}", summary, versioned=False, **fields)


_NAMED = {"model": {"model": _MODEL}}

OPERATIONS = (
    _operation("get", "version", "Show the version of the API", response=Version),
    _operation("get", "tags", "List the available models", response=TagList),
    _operation("get", "ps", "List the models in memory", response=RunningList),
    _operation("post", "show", "Show a model", request=ShowRequest, response=ShowResponse, examples=_NAMED),
    _operation(
        "post",
        "chat",
        "Complete a chat. `stream` is true by default",
        request=ChatRequest,
        response=ChatLine,
        stream=Stream([ChatLine], NDJSON),
        examples={"chat": {"model": _MODEL, "messages": _MESSAGES, "stream": False}},
    ),
    _operation(
        "post",
        "generate",
        "Complete a prompt. `stream` is true by default",
        request=GenerateRequest,
        response=GenerateLine,
        stream=Stream([GenerateLine], NDJSON),
        examples={"prompt": {"model": _MODEL, "prompt": "Once upon a time"}},
    ),
    _operation(
        "post",
        "embed",
        "Embed one or more texts",
        request=EmbedBody,
        response=EmbedResponse,
        examples={"text": {"model": _EMBEDDER, "input": "A man is eating food."}},
    ),
    _operation(
        "post",
        "embeddings",
        "Embed one text",
        request=EmbeddingsBody,
        response=EmbeddingsResponse,
        examples={"text": {"model": _EMBEDDER, "prompt": "A man is eating food."}},
    ),
    _operation(
        "post",
        "pull",
        "Download a model",
        request=PullBody,
        response=Progress,
        stream=Stream([Progress], NDJSON),
        examples=_NAMED,
    ),
    _operation(
        "post",
        "copy",
        "Add an alias",
        request=CopyRequest,
        media_type=None,
        examples={"alias": {"source": _MODEL, "destination": "small"}},
    ),
    _operation(
        "post",
        "create",
        "Add an alias",
        request=CreateRequest,
        response=Status,
        examples={"alias": {"model": "small", "from": _MODEL}},
    ),
    _operation("delete", "delete", "Delete a model", request=ModelBody, media_type=None, examples=_NAMED),
)


def error_example(_: int, __: list[ErrorCode]) -> ErrorLine:
    """Return an error response."""
    return ErrorLine("What failed, why, and what to do.")


API = Api(
    OPERATIONS,
    ErrorLine,
    error_example,
    errors=frozenset({ErrorCode.BUSY, ErrorCode.NAME_TAKEN, ErrorCode.PULL_FAILED, ErrorCode.DISK_FULL}),
    prefix="Ollama",
)
