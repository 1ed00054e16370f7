"""What the OpenAPI description has about responses and conversations. It cannot describe the WebSocket."""

from typing import Any

import msgspec

from osaurusd.config import Input
from osaurusd.http.openapi import Api, Operation, Query, Schema, Stream
from osaurusd.protocols.openai.chat import REASONING_EFFORTS
from osaurusd.protocols.openai.openapi import add_error_codes, error_example, error_restriction
from osaurusd.protocols.openai.responses.compaction import Compaction
from osaurusd.protocols.openai.responses.paging import DEFAULT_PAGE, MAX_PAGE
from osaurusd.protocols.openai.responses.types import (
    NO_OP_VALUES,
    Conversation,
    CreateConversation,
    CreateItems,
    DeletedConversation,
    DeletedResponse,
    InputTokens,
    ItemList,
    Response,
    ResponseRequest,
    UpdateConversation,
)
from osaurusd.wire.errors import ErrorCode, ErrorEnvelope

_MODEL = "llama-3.2-3b-instruct"
_ITEM = {"role": "user", "content": "Say hello."}


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a response. Its other fields depend on its type."""

    type: str
    sequence_number: int


class ConversationItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a conversation. Its other fields depend on its type."""

    type: str


_PAGE = (
    Query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
        "How many items the page has at most.",
    ),
    Query("order", {"enum": ["asc", "desc"], "default": "desc"}, "Whether the oldest or the newest item is first."),
    Query("after", {"type": "string"}, "The id of the item before the page."),
)


def _post(path: str, id_: str, summary: str, **fields: Any) -> Operation:
    return Operation("post", path, id_, summary, **fields)


OPERATIONS = (
    _post(
        "/responses",
        "createResponse",
        "Create a response",
        request=ResponseRequest,
        response=Response,
        stream=Stream([ResponseEvent], end="[DONE]"),
        examples={
            "text": {"model": _MODEL, "input": "Say hello."},
            "stream": {"model": _MODEL, "input": [_ITEM], "stream": True},
        },
    ),
    _post(
        "/responses/input_tokens",
        "countInputTokens",
        "Count the tokens of a prompt",
        request=ResponseRequest,
        response=InputTokens,
        examples={"text": {"model": _MODEL, "input": "Say hello."}},
    ),
    _post(
        "/responses/compact",
        "compactResponse",
        "Let the model summarize a conversation",
        request=ResponseRequest,
        response=Compaction,
        examples={"items": {"model": _MODEL, "input": [_ITEM]}},
    ),
    Operation(
        "get",
        "/responses/{response}",
        "showResponse",
        "Retrieve a response",
        response=Response,
        stream=Stream([ResponseEvent], end="[DONE]"),
        query=(
            Query("stream", {"type": "boolean"}, "Whether to stream a response that runs in the background."),
            Query("starting_after", {"type": "integer"}, "The number of the event before the first one of the stream."),
        ),
    ),
    Operation("delete", "/responses/{response}", "deleteResponse", "Delete a response", response=DeletedResponse),
    _post("/responses/{response}/cancel", "cancelResponse", "Stop a response", response=Response),
    Operation(
        "get",
        "/responses/{response}/input_items",
        "listInputItems",
        "List the items that the model got",
        response=ItemList,
        query=_PAGE,
    ),
    _post(
        "/conversations",
        "createConversation",
        "Create a conversation",
        request=CreateConversation,
        response=Conversation,
        examples={"empty": {}, "items": {"items": [_ITEM], "metadata": {"topic": "greetings"}}},
    ),
    Operation(
        "get", "/conversations/{conversation}", "showConversation", "Retrieve a conversation", response=Conversation
    ),
    _post(
        "/conversations/{conversation}",
        "updateConversation",
        "Replace the metadata of a conversation",
        request=UpdateConversation,
        response=Conversation,
        examples={"metadata": {"metadata": {"topic": "greetings"}}},
    ),
    Operation(
        "delete",
        "/conversations/{conversation}",
        "deleteConversation",
        "Delete a conversation",
        response=DeletedConversation,
    ),
    _post(
        "/conversations/{conversation}/items",
        "addConversationItems",
        "Add items to a conversation",
        request=CreateItems,
        response=ItemList,
        examples={"items": {"items": [_ITEM]}},
    ),
    Operation(
        "get",
        "/conversations/{conversation}/items",
        "listConversationItems",
        "List the items of a conversation",
        response=ItemList,
        query=_PAGE,
    ),
    Operation(
        "get",
        "/conversations/{conversation}/items/{item}",
        "showConversationItem",
        "Retrieve an item",
        response=ConversationItem,
    ),
    Operation(
        "delete",
        "/conversations/{conversation}/items/{item}",
        "deleteConversationItem",
        "Delete an item",
        response=Conversation,
    ),
)


def refine(components: dict[str, Schema], _: Input) -> None:
    """Add constraints to the components."""
    add_error_codes(components)
    request = components["ResponseRequest"]["properties"]
    for field, accepted in NO_OP_VALUES.items():
        request[field] = {"enum": [None, *accepted], "default": None, "description": "Not supported."}
    for form in components["Reasoning"]["properties"]["effort"]["anyOf"]:
        if form.get("type") == "string":
            form["enum"] = list(REASONING_EFFORTS)


API = Api(
    OPERATIONS,
    ErrorEnvelope,
    error_example,
    error_restriction,
    errors=frozenset({ErrorCode.BUSY}),
    prefix="Responses",
    refine=refine,
)
