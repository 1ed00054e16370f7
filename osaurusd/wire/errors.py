"""Error codes and the error envelope, shared by HTTP, the Unix socket and worker frames."""

import ast
import json
import re
from enum import StrEnum

import msgspec

# Longer than any name; more of a value does not help the reader.
_MAX_VALUE_CHARACTERS = 1000
_PYTHON_TEXT = re.compile(r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")$""")


class ErrorCode(StrEnum):
    """Machine-readable reasons. They are public API: documented, tested, and never renamed."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    IMAGE_INPUT_UNSUPPORTED = "image_input_unsupported"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    REQUEST_EXCEEDS_MEMORY = "request_exceeds_memory"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_DOWNLOADED = "model_not_downloaded"
    PREVIOUS_RESPONSE_NOT_FOUND = "previous_response_not_found"
    MALFORMED_REQUEST = "malformed_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    URI_TOO_LONG = "uri_too_long"
    EXPECTATION_FAILED = "expectation_failed"
    HEADERS_TOO_LARGE = "headers_too_large"
    NOT_IMPLEMENTED = "not_implemented"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_API_KEY = "invalid_api_key"
    FORBIDDEN = "forbidden"
    VERSION_MISMATCH = "version_mismatch"
    BUSY = "busy"
    QUEUE_FULL = "queue_full"
    TOO_MANY_REQUESTS = "too_many_requests"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TIME_LIMIT_EXCEEDED = "time_limit_exceeded"
    NAME_TAKEN = "name_taken"
    HOST_NAME_TAKEN = "host_name_taken"
    HOST_NOT_FOUND = "host_not_found"
    HOST_UNREACHABLE = "host_unreachable"
    PAIRING_FAILED = "pairing_failed"
    IMPORT_FAILED = "import_failed"
    QUANTIZATION_FAILED = "quantization_failed"
    PULL_FAILED = "pull_failed"
    DISK_FULL = "disk_full"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    LOAD_FAILED = "load_failed"
    WORKER_CRASHED = "worker_crashed"
    HOST_LOST = "host_lost"
    SLOW_CLIENT = "slow_client"
    MODEL_UNLOADED = "model_unloaded"
    DRAINING = "draining"
    SHUTTING_DOWN = "shutting_down"
    NOT_SERVING = "not_serving"
    CONFIG_ERROR = "config_error"
    HOME_IN_USE = "home_in_use"
    LISTEN_FAILED = "listen_failed"
    INTERNAL_ERROR = "internal_error"


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The object under `error`: OpenAI's four keys, always present."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every error response, and the last SSE event of a stream that fails."""

    error: ErrorBody


def as_json(value: object) -> str:
    """Render a value for an error text as JSON, with unprintable characters escaped, and long ones cut."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _MAX_VALUE_CHARACTERS:
        text = text[:_MAX_VALUE_CHARACTERS] + "…"
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def explain_as_json(reason: str) -> str:
    """Convert the text at the end of an error of msgspec, which is a Python literal, to JSON."""
    return _PYTHON_TEXT.sub(lambda literal: as_json(ast.literal_eval(literal[0])), reason)
