"""Error responses: HTTP statuses, retry headers, and the default JSON body."""

import math
from collections.abc import Mapping

import msgspec
from aiohttp import hdrs, web

from osaurusd.errors import InternalError, OsaurusError
from osaurusd.log import get_logger
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

log = get_logger(__name__)

STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_JSON: 400,
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNSUPPORTED_PARAMETER: 400,
    ErrorCode.IMAGE_INPUT_UNSUPPORTED: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.REQUEST_EXCEEDS_MEMORY: 400,
    ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND: 400,
    ErrorCode.IMPORT_FAILED: 400,
    ErrorCode.PAIRING_FAILED: 400,
    ErrorCode.QUANTIZATION_FAILED: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MALFORMED_REQUEST: 400,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.MODEL_NOT_DOWNLOADED: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.HOST_NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.SLOW_CLIENT: 408,
    ErrorCode.BUSY: 409,
    ErrorCode.NAME_TAKEN: 409,
    ErrorCode.HOST_NAME_TAKEN: 409,
    ErrorCode.VERSION_MISMATCH: 412,
    ErrorCode.REQUEST_TOO_LARGE: 413,
    ErrorCode.URI_TOO_LONG: 414,
    ErrorCode.UNSUPPORTED_ENCODING: 415,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.EXPECTATION_FAILED: 417,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.TOO_MANY_REQUESTS: 429,
    ErrorCode.HEADERS_TOO_LARGE: 431,
    ErrorCode.LOAD_FAILED: 500,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.CONFIG_ERROR: 500,
    ErrorCode.HOME_IN_USE: 500,
    ErrorCode.LISTEN_FAILED: 500,
    ErrorCode.NOT_IMPLEMENTED: 501,
    ErrorCode.PULL_FAILED: 502,
    ErrorCode.HOST_UNREACHABLE: 502,
    ErrorCode.WORKER_CRASHED: 502,
    ErrorCode.HOST_LOST: 503,
    ErrorCode.MODEL_UNLOADED: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.SHUTTING_DOWN: 503,
    ErrorCode.NOT_SERVING: 503,
    ErrorCode.INSUFFICIENT_MEMORY: 503,
    ErrorCode.TOO_MANY_CONNECTIONS: 503,
    ErrorCode.TIME_LIMIT_EXCEEDED: 504,
    ErrorCode.DISK_FULL: 507,
}

MAX_MESSAGE_CHARACTERS = 4000
MAX_PARAM_CHARACTERS = 500
MAX_EXCERPT_CHARACTERS = 80

_RETRY_SOON: Mapping[str, str] = {hdrs.RETRY_AFTER: "1"}
_RETRY_AFTER_RESTART: Mapping[str, str] = {hdrs.RETRY_AFTER: "5"}
_DO_NOT_RETRY: Mapping[str, str] = {"x-should-retry": "false"}

# OpenAI's client libraries retry on 429 and 5xx. A 401 must name the authentication scheme (RFC 9110, section 15.5.2).
_HEADERS: Mapping[ErrorCode, Mapping[str, str]] = {
    ErrorCode.INVALID_API_KEY: {hdrs.WWW_AUTHENTICATE: "Bearer"},
    ErrorCode.UNSUPPORTED_ENCODING: {hdrs.ACCEPT_ENCODING: "identity"},
    ErrorCode.QUEUE_FULL: _RETRY_SOON,
    ErrorCode.TOO_MANY_REQUESTS: _RETRY_SOON,
    ErrorCode.TOO_MANY_CONNECTIONS: _RETRY_SOON,
    ErrorCode.HOST_LOST: _RETRY_AFTER_RESTART,
    ErrorCode.MODEL_UNLOADED: _RETRY_SOON,
    ErrorCode.DRAINING: _RETRY_AFTER_RESTART,
    ErrorCode.SHUTTING_DOWN: _RETRY_AFTER_RESTART,
    ErrorCode.NOT_SERVING: _RETRY_AFTER_RESTART,
    ErrorCode.TIME_LIMIT_EXCEEDED: _DO_NOT_RETRY,
    ErrorCode.LOAD_FAILED: _DO_NOT_RETRY,
    ErrorCode.INSUFFICIENT_MEMORY: _DO_NOT_RETRY,
    ErrorCode.INTERNAL_ERROR: _DO_NOT_RETRY,
}


def status_of(error: OsaurusError) -> int:
    return STATUS[error.code]


def error_headers(error: OsaurusError) -> Mapping[str, str]:
    """Return the headers that every response to this error has, regardless of the format of its body."""
    headers = _HEADERS.get(error.code, {})
    if error.retry_after is None:
        return headers
    return {**headers, hdrs.RETRY_AFTER: str(max(1, math.ceil(error.retry_after)))}


def error_type(status: int) -> str:
    """Return OpenAI's error type for a status."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(error: OsaurusError) -> ErrorBody:
    """Return the error as clients see it, with message and param cut to a sensible length."""
    return ErrorBody(
        message=_printable(error.message, MAX_MESSAGE_CHARACTERS),
        type=error_type(status_of(error)),
        param=None if error.param is None else _printable(error.param, MAX_PARAM_CHARACTERS),
        code=error.code,
    )


def error_response(error: OsaurusError) -> web.Response:
    """Render an error in the default format: a JSON object with the key `error`."""
    body = msgspec.json.encode(ErrorEnvelope(error_body(error)))
    return web.Response(status=status_of(error), body=body, content_type="application/json")


def as_osaurus_error(error: Exception) -> OsaurusError:
    """Return an error with a code unchanged; log any other and return an `InternalError` that hides it."""
    if isinstance(error, OsaurusError):
        return error
    log.error("unexpected error", exc_info=error)
    return InternalError("internal error; see the daemon's log for details")


def excerpt(text: str) -> str:
    """Return the beginning of text that a client sent, with control characters escaped."""
    shown = text if len(text) <= MAX_EXCERPT_CHARACTERS else text[:MAX_EXCERPT_CHARACTERS] + "…"
    return repr(shown)[1:-1]


def _printable(text: str, max_characters: int) -> str:
    """Cut text to a length, and escape lone surrogates, which UTF-8 cannot encode."""
    shown = text if len(text) <= max_characters else f"{text[: max_characters - 1]}…"
    return shown.encode("utf-8", "backslashreplace").decode()
