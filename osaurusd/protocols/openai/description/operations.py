"""What clients can ask for, a row for each path: the table that `document` makes OpenAPI of."""

from typing import Any

import msgspec

from osaurusd.protocols.openai.render import chat, chunks, completions, models
from osaurusd.protocols.openai.render.envelope import Usage
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest

JSON = "application/json"
EVENTS = "text/event-stream"


class ChatChunk(chunks.ChunkHead, frozen=True, kw_only=True):
    """One `data:` of a streamed chat. `usage` is in the last one before `[DONE]`, if it was asked for."""

    choices: list[chunks.ChunkChoice]
    usage: Usage | None = None


class TextChunk(completions.TextHead, frozen=True, kw_only=True):
    """One `data:` of a streamed legacy completion."""

    choices: list[completions.TextChoice]
    usage: Usage | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `GET /health`."""

    status: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    `request` and `reply` are the types of bodies, `event` that of each event of a stream; a reply without a type is of
    the media type `media`. `everywhere`: the path is also under `/v1`.
    """

    method: str
    path: str
    id: str
    summary: str
    request: type | None = None
    reply: type | None = None
    event: type | None = None
    media: str = JSON
    examples: dict[str, Any] = {}
    everywhere: bool = True


_TALK = [{"role": "user", "content": "Say hello."}]
_MODEL = "llama-3.2-3b-instruct"
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

OPERATIONS = (
    Operation(method="get", path="/health", id="health", summary="Whether requests can be served", reply=Health),
    Operation(
        method="get", path="/models", id="listModels", summary="The models that can be served", reply=models.ModelList
    ),
    Operation(
        method="get",
        path="/models/{model}",
        id="showModel",
        summary="One model, by any of its names",
        reply=models.Model,
    ),
    Operation(
        method="post",
        path="/chat/completions",
        id="createChatCompletion",
        summary="Answer a chat",
        request=ChatRequest,
        reply=chat.Completion,
        event=ChatChunk,
        examples={
            "chat": {"model": _MODEL, "messages": _TALK},
            "stream": {"model": _MODEL, "messages": _TALK, "stream": True, "stream_options": {"include_usage": True}},
            "call": {"model": _MODEL, "messages": _TALK, "tools": [_WEATHER], "tool_choice": "required"},
            "json": {"model": _MODEL, "messages": _TALK, "response_format": {"type": "json_object"}},
        },
    ),
    Operation(
        method="post",
        path="/completions",
        id="createCompletion",
        summary="Continue one or several texts",
        request=CompletionRequest,
        reply=completions.TextCompletion,
        event=TextChunk,
        examples={
            "text": {"model": _MODEL, "prompt": "Once upon a time", "max_tokens": 16},
            "several": {"model": _MODEL, "prompt": ["One, two,", "Three, four,"], "max_tokens": 4},
        },
    ),
    Operation(
        method="get",
        path="/metrics",
        id="metrics",
        summary="What is counted, in Prometheus' text format",
        media="text/plain",
        everywhere=False,
    ),
    Operation(method="get", path="/openapi.json", id="describe", summary="This description", reply=dict[str, Any]),
)
