"""Errors that end a pull, or that make a part of it start over."""

import re
import ssl

from osaurusd.wire.errors import ErrorCode


class PullError(Exception):
    """The pull cannot continue; received data is kept. The message names the file or the repository."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PULL_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class TransientError(Exception):
    """A request failed but may succeed later. `retry_after` is the delay that the server requested, in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UrlExpired(TransientError):
    """A signed URL has expired; the hub issues a new one."""


class FileChanged(Exception):
    """The file has changed since its beginning was received, or has another size; start it over."""


class RangesUnsupported(Exception):
    """The server ignores ranges and always sends the whole file."""


def describe_failure(error: Exception) -> str:
    """Return why a connection failed, without the error number that HTTP libraries put before it."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def certificate_error(error: BaseException) -> PullError | None:
    """Return the error to report if `error` was caused by a certificate that is not trusted, or else None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return PullError(
        f"the certificate of the server is not trusted: {cause.verify_message}; if a proxy inspects TLS, set "
        "SSL_CERT_FILE to a file with its certificate authority"
    )
