"""From an exception to an HTTP answer: the one place that knows status codes and the envelope's layout."""

from collections.abc import Mapping

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, OsaurusError, RequestTooLarge
from osaurusd.http import inflate
from osaurusd.http.refusals import excerpt
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
    ErrorCode.IMPORT_FAILED: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MALFORMED_REQUEST: 400,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.MODEL_NOT_DOWNLOADED: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.SLOW_CLIENT: 408,
    ErrorCode.BUSY: 409,
    ErrorCode.NAME_TAKEN: 409,
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
    ErrorCode.WORKER_CRASHED: 502,
    ErrorCode.MODEL_UNLOADED: 503,
    ErrorCode.SHUTTING_DOWN: 503,
    ErrorCode.NOT_SERVING: 503,
    ErrorCode.INSUFFICIENT_MEMORY: 503,
    ErrorCode.TOO_MANY_CONNECTIONS: 503,
    ErrorCode.TIME_LIMIT_EXCEEDED: 504,
    ErrorCode.DISK_FULL: 507,
}

MAX_MESSAGE = 4000
MAX_PARAM = 500

# OpenAI's clients ask again on 429 and 5xx: after how many seconds, or not at all, where the same request would fail
# the same way. A 401 must say how one makes oneself known (RFC 9110, section 15.5.2).
_ADVICE: Mapping[ErrorCode, Mapping[str, str]] = {
    ErrorCode.INVALID_API_KEY: {hdrs.WWW_AUTHENTICATE: "Bearer"},
    ErrorCode.TOO_MANY_REQUESTS: {hdrs.RETRY_AFTER: "1"},
    ErrorCode.TOO_MANY_CONNECTIONS: {hdrs.RETRY_AFTER: "1"},
    ErrorCode.TIME_LIMIT_EXCEEDED: {"x-should-retry": "false"},
    ErrorCode.UNSUPPORTED_ENCODING: {hdrs.ACCEPT_ENCODING: inflate.SUPPORTED},
    ErrorCode.QUEUE_FULL: {hdrs.RETRY_AFTER: "1"},
    ErrorCode.LOAD_FAILED: {"x-should-retry": "false"},
    ErrorCode.INSUFFICIENT_MEMORY: {"x-should-retry": "false"},
    ErrorCode.INTERNAL_ERROR: {"x-should-retry": "false"},
}


def status_of(error: OsaurusError) -> int:
    """The HTTP status of an error."""
    return STATUS[error.code]


def error_body(error: OsaurusError) -> ErrorBody:
    """The error as it stands in every answer; what it quotes of a request may be of any length, an answer not."""
    param = None if error.param is None else _shown(error.param, MAX_PARAM)
    message = _shown(error.message, MAX_MESSAGE)
    return ErrorBody(message=message, type=kind_of(status_of(error)), param=param, code=error.code)


def _shown(text: str, length: int) -> str:
    """Its beginning, with escapes for what no UTF-8 has: half a surrogate from a path or a field."""
    shown = text if len(text) <= length else f"{text[: length - 1]}…"
    return shown.encode("utf-8", "backslashreplace").decode()


def kind_of(status: int) -> str:
    """OpenAI's word for whose fault it is."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def envelope(error: OsaurusError) -> bytes:
    """The error as OpenAI's JSON object."""
    return msgspec.json.encode(ErrorEnvelope(error_body(error)))


def response(error: OsaurusError) -> web.Response:
    """The error as a whole HTTP answer."""
    headers = _ADVICE.get(error.code)
    return web.Response(status=status_of(error), body=envelope(error), content_type="application/json", headers=headers)


def wire(error: OsaurusError) -> bytes:
    """The same byte for byte, for a connection that has no request to answer; it is the last one there."""
    answer = response(error)
    body = envelope(error)
    headers = {**answer.headers, hdrs.CONTENT_LENGTH: str(len(body)), hdrs.CONNECTION: "close"}
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def known(error: Exception) -> OsaurusError:
    """The error itself if it has a code; anything else is logged whole and shown as `internal_error`."""
    if isinstance(error, OsaurusError):
        return error
    log.error("unexpected error", exc_info=error)
    return InternalError("something went wrong inside osaurusd; its log says what")


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into its answer."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        return _translate(request, refusal)
    except ConnectionError as error:
        if request.transport is None or request.transport.is_closing():
            raise
        return _answer(request, error)
    except Exception as error:  # noqa: BLE001  the boundary: what has no code is logged and hidden
        return _answer(request, error)


def _answer(request: web.Request, error: Exception) -> web.Response:
    answer = response(known(error))
    if request.writer.output_size > 0:
        # A second answer in the middle of one would be taken for a part of it; so the client gets none and sees it.
        raise ConnectionResetError("an answer has begun already") from error
    return answer


def _translate(request: web.Request, refusal: web.HTTPException) -> web.Response:
    """aiohttp's own refusals, in our words."""
    if isinstance(refusal, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(refusal.allowed_methods))
        answer = response(
            MethodNotAllowed(f"{excerpt(request.path)} does not take {request.method}; it takes {allowed}")
        )
        answer.headers["Allow"] = allowed
        return answer
    error: OsaurusError
    if isinstance(refusal, web.HTTPNotFound):
        error = NotFound(f"there is no {excerpt(request.path)} here")
    elif isinstance(refusal, web.HTTPRequestEntityTooLarge):
        error = RequestTooLarge("the request body is larger than `server.max_body_bytes` allows")
    else:
        error = InvalidRequest(refusal.text or refusal.reason)
    return response(error)
