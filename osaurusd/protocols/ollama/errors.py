"""Errors of Ollama's routes: an object with the message, as a response and as the last line of a stream."""

import msgspec
from aiohttp import web

from osaurusd.errors import OsaurusError
from osaurusd.http.errors import error_body, status_of


class ErrorLine(msgspec.Struct, frozen=True):
    """An error as a client receives it."""

    error: str


def error_line(error: OsaurusError) -> ErrorLine:
    """Render an error in the middle of a stream."""
    return ErrorLine(error_body(error).message)


def error_response(error: OsaurusError) -> web.Response:
    """Render an error as a response."""
    body = msgspec.json.encode(error_line(error))
    return web.Response(status=status_of(error), body=body, content_type="application/json")
