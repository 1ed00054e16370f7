"""Every failure that has a code. Transport-neutral: no status codes and no layout.

OsaurusError
├── InvalidRequest              the request is invalid; `param` or `location` names the field
│   ├── InvalidJson
│   ├── UnsupportedParameter
│   ├── ImageInputUnsupported
│   ├── ContextLengthExceeded
│   ├── PreviousResponseNotFound
│   └── RequestExceedsMemory    does not fit into memory even when served alone
├── ModelNotFound
│   └── ModelNotDownloaded      a known name, but not on this machine
├── NotFound, MethodNotAllowed, RequestTooLarge, UnsupportedMediaType, InvalidApiKey, Forbidden, VersionMismatch
├── MalformedRequest, RequestTimeout, UriTooLong, ExpectationFailed, HeadersTooLarge, NotImplementedHere,
│   UnsupportedEncoding         rejected by the HTTP layer before a handler runs
├── TooManyRequests, TooManyConnections, TimeLimitExceeded
├── Busy, QueueFull, NameTaken, ImportFailed, QuantizationFailed, PullFailed, DiskFull
├── HostNameTaken, HostNotFound, HostUnreachable, PairingFailed
├── InsufficientMemory, LoadFailed, WorkerCrashed, HostLost, SlowClient, ModelUnloaded
├── Draining, ShuttingDown, NotServing
├── ConfigError, HomeInUse, ListenFailed
└── InternalError
"""

from typing import ClassVar

from osaurusd.wire.errors import ErrorCode


class OsaurusError(Exception):
    """Base of every failure that has a code.

    Args:
        message: what failed, why, and what to do.
        param: public path of the field at fault, set where a protocol, the admin API or the configuration is parsed.
        location: neutral position in a generation request (`inference.request.Location`), set everywhere below; each
            protocol maps it to its own field path.

    Attributes:
        prompt_index: the number of the prompt at fault, if a request has several.
        retry_after: seconds after which the request may succeed, if that is known.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL_ERROR
    by_code: ClassVar[dict[ErrorCode, type["OsaurusError"]]] = {}

    def __init__(
        self, message: str, *, param: str | None = None, location: tuple[str | int, ...] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.location = location
        self.prompt_index: int | None = None
        self.retry_after: float | None = None

    def __init_subclass__(cls) -> None:
        OsaurusError.by_code[cls.code] = cls


class InvalidRequest(OsaurusError):
    code = ErrorCode.INVALID_REQUEST


class InvalidJson(InvalidRequest):
    code = ErrorCode.INVALID_JSON


class UnsupportedParameter(InvalidRequest):
    code = ErrorCode.UNSUPPORTED_PARAMETER


class ImageInputUnsupported(InvalidRequest):
    code = ErrorCode.IMAGE_INPUT_UNSUPPORTED


class ContextLengthExceeded(InvalidRequest):
    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED


class RequestExceedsMemory(InvalidRequest):
    code = ErrorCode.REQUEST_EXCEEDS_MEMORY


class PreviousResponseNotFound(InvalidRequest):
    code = ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND


class ModelNotFound(OsaurusError):
    code = ErrorCode.MODEL_NOT_FOUND


class ModelNotDownloaded(ModelNotFound):
    code = ErrorCode.MODEL_NOT_DOWNLOADED


class NotFound(OsaurusError):
    code = ErrorCode.NOT_FOUND


class MethodNotAllowed(OsaurusError):
    code = ErrorCode.METHOD_NOT_ALLOWED


class RequestTooLarge(OsaurusError):
    code = ErrorCode.REQUEST_TOO_LARGE


class UnsupportedMediaType(OsaurusError):
    code = ErrorCode.UNSUPPORTED_MEDIA_TYPE


class InvalidApiKey(OsaurusError):
    code = ErrorCode.INVALID_API_KEY


class MalformedRequest(OsaurusError):
    code = ErrorCode.MALFORMED_REQUEST


class RequestTimeout(OsaurusError):
    code = ErrorCode.REQUEST_TIMEOUT


class UriTooLong(OsaurusError):
    code = ErrorCode.URI_TOO_LONG


class ExpectationFailed(OsaurusError):
    code = ErrorCode.EXPECTATION_FAILED


class HeadersTooLarge(OsaurusError):
    code = ErrorCode.HEADERS_TOO_LARGE


class NotImplementedHere(OsaurusError):
    code = ErrorCode.NOT_IMPLEMENTED


class UnsupportedEncoding(OsaurusError):
    code = ErrorCode.UNSUPPORTED_ENCODING


class TooManyRequests(OsaurusError):
    code = ErrorCode.TOO_MANY_REQUESTS


class TooManyConnections(OsaurusError):
    code = ErrorCode.TOO_MANY_CONNECTIONS


class TimeLimitExceeded(OsaurusError):
    code = ErrorCode.TIME_LIMIT_EXCEEDED


class Forbidden(OsaurusError):
    code = ErrorCode.FORBIDDEN


class VersionMismatch(OsaurusError):
    code = ErrorCode.VERSION_MISMATCH


class Busy(OsaurusError):
    code = ErrorCode.BUSY


class QueueFull(OsaurusError):
    code = ErrorCode.QUEUE_FULL


class NameTaken(OsaurusError):
    code = ErrorCode.NAME_TAKEN


class HostNameTaken(OsaurusError):
    code = ErrorCode.HOST_NAME_TAKEN


class HostNotFound(OsaurusError):
    code = ErrorCode.HOST_NOT_FOUND


class HostUnreachable(OsaurusError):
    code = ErrorCode.HOST_UNREACHABLE


class PairingFailed(OsaurusError):
    code = ErrorCode.PAIRING_FAILED


class ImportFailed(OsaurusError):
    code = ErrorCode.IMPORT_FAILED


class QuantizationFailed(OsaurusError):
    code = ErrorCode.QUANTIZATION_FAILED


class PullFailed(OsaurusError):
    code = ErrorCode.PULL_FAILED


class DiskFull(OsaurusError):
    code = ErrorCode.DISK_FULL


class InsufficientMemory(OsaurusError):
    code = ErrorCode.INSUFFICIENT_MEMORY


class LoadFailed(OsaurusError):
    code = ErrorCode.LOAD_FAILED


class WorkerCrashed(OsaurusError):
    code = ErrorCode.WORKER_CRASHED


class HostLost(OsaurusError):
    code = ErrorCode.HOST_LOST


class SlowClient(OsaurusError):
    code = ErrorCode.SLOW_CLIENT


class ModelUnloaded(OsaurusError):
    code = ErrorCode.MODEL_UNLOADED


class Draining(OsaurusError):
    code = ErrorCode.DRAINING


class ShuttingDown(OsaurusError):
    code = ErrorCode.SHUTTING_DOWN


class NotServing(OsaurusError):
    code = ErrorCode.NOT_SERVING


class ConfigError(OsaurusError):
    code = ErrorCode.CONFIG_ERROR


class HomeInUse(OsaurusError):
    code = ErrorCode.HOME_IN_USE


class ListenFailed(OsaurusError):
    code = ErrorCode.LISTEN_FAILED


class InternalError(OsaurusError):
    code = ErrorCode.INTERNAL_ERROR


def from_code(code: ErrorCode, message: str, location: tuple[str | int, ...] | None = None) -> OsaurusError:
    """Rebuild an error that crossed a process boundary as its code."""
    return OsaurusError.by_code.get(code, InternalError)(message, location=location)
