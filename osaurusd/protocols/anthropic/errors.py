"""Errors of Anthropic's routes: an envelope with the type of the error, as a response and as an event of a stream."""

from collections.abc import Mapping

import msgspec
from aiohttp import web

from osaurusd.errors import ContextLengthExceeded, OsaurusError
from osaurusd.http.errors import error_body, status_of
from osaurusd.log import current_request_id

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The types by status. Any other one is an `invalid_request_error` below 500, else an `api_error`."""

TOO_LONG = "prompt is too long: "
"""The beginning of the message by which Claude Code recognizes that it has to compact a conversation."""


class ErrorDetail(msgspec.Struct, frozen=True):
    type: str
    message: str


class ErrorEnvelope(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """An error as a client receives it."""

    error: ErrorDetail
    request_id: str | None


def error_event(error: OsaurusError) -> tuple[str, bytes]:
    """Render an error in the middle of a stream."""
    return "error", msgspec.json.encode(_envelope(error))


def error_response(error: OsaurusError) -> web.Response:
    """Render an error as a response."""
    body = msgspec.json.encode(_envelope(error))
    return web.Response(status=status_of(error), body=body, content_type="application/json")


def _envelope(error: OsaurusError) -> ErrorEnvelope:
    message = error_body(error).message
    if isinstance(error, ContextLengthExceeded):
        message = TOO_LONG + message
    return ErrorEnvelope(ErrorDetail(error_type(status_of(error)), message), current_request_id())


def error_type(status: int) -> str:
    """Return the type of an error with a status."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
