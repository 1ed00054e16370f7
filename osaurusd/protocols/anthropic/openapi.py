"""What the OpenAPI description has about Anthropic's API."""

from typing import get_args

from osaurusd.http.openapi import Api, Operation, Schema, Stream
from osaurusd.protocols.anthropic.errors import ErrorDetail, ErrorEnvelope, error_type
from osaurusd.protocols.anthropic.types import (
    CountTokensRequest,
    MessagesRequest,
    ResponseMessage,
    StreamEvent,
    TokenCount,
)
from osaurusd.wire.errors import ErrorCode

_MESSAGES = [{"role": "user", "content": "Say hello."}]
_MODEL = "llama-3.2-3b-instruct"

OPERATIONS = (
    Operation(
        method="post",
        path="/messages",
        id="createMessage",
        summary="Create a message",
        request=MessagesRequest,
        response=ResponseMessage,
        stream=Stream(get_args(StreamEvent)),
        examples={
            "message": {"model": _MODEL, "max_tokens": 64, "messages": _MESSAGES},
            "stream": {"model": _MODEL, "max_tokens": 64, "messages": _MESSAGES, "stream": True},
        },
    ),
    Operation(
        method="post",
        path="/messages/count_tokens",
        id="countMessageTokens",
        summary="Count the tokens of a prompt",
        request=CountTokensRequest,
        response=TokenCount,
        examples={"messages": {"model": _MODEL, "messages": _MESSAGES}},
    ),
)


def error_example(status: int, _: list[ErrorCode]) -> ErrorEnvelope:
    """Return an error response."""
    return ErrorEnvelope(ErrorDetail(error_type(status), "What failed, why, and what to do."), "req_1")


def error_restriction(status: int, _: list[ErrorCode]) -> Schema:
    """Return what the error responses with a status have in common."""
    return {"properties": {"error": {"properties": {"type": {"const": error_type(status)}}}}}


API = Api(OPERATIONS, ErrorEnvelope, error_example, error_restriction, prefix="Anthropic")
