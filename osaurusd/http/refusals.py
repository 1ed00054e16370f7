"""What is wrong with a request as HTTP: from the parser's exceptions, and what the parser lets pass."""

import re

from aiohttp import hdrs
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMethod, BadStatusLine, HttpProcessingError, InvalidURLError, LineTooLong

from osaurusd.errors import (
    ExpectationFailed,
    Forbidden,
    HeadersTooLarge,
    MalformedRequest,
    NotImplementedHere,
    OsaurusError,
    UriTooLong,
)

EXCERPT_CHARACTERS = 80

CONTINUE = "100-continue"

# RFC 9110, 5.5: of the control characters only the tab may stand in a value.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_PORT = re.compile(r":(80)?$")


def excerpt(text: str) -> str:
    """The beginning of what a client sent, fit to be shown: short, and with everything odd about it escaped."""
    shown = text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"
    return repr(shown)[1:-1]


def of_parser(error: HttpProcessingError, max_line: int) -> OsaurusError:
    """What the parser could not read. `max_line` is its limit for the request's target, and for nothing else."""
    if isinstance(error, LineTooLong):
        if error.args[1] == max_line:
            return UriTooLong(f"the request's target is longer than `limits.max_request_line_bytes`, {max_line}")
        return HeadersTooLarge(f"a header is longer than `limits.max_header_bytes`, {error.args[1]}")
    # The first line is the reason; what follows are the bytes that were received.
    reason, _, rest = error.message.partition("\n")
    if reason.startswith("Too many headers"):
        return HeadersTooLarge("the request has more headers than `limits.max_headers` allows")
    if isinstance(error, BadHttpMethod):
        return MalformedRequest(f"this is not HTTP: {_method_fault(reason)}")
    if isinstance(error, InvalidURLError):
        return MalformedRequest("the request's target is no path and no URL")
    if isinstance(error, BadStatusLine):
        reason = rest.strip().partition("\n")[0] or reason
    return MalformedRequest(f"the request is malformed: {excerpt(reason.rstrip(':'))}")


def of_head(message: RawRequestMessage, max_head: int) -> OsaurusError | None:
    """What is wrong with a head that the parser takes, if anything is."""
    if sum(len(name) + len(value) + 4 for name, value in message.raw_headers) + len(message.path) > max_head:
        return head_too_large(max_head)
    for name, value in message.headers.items():
        if _CONTROL.search(value):
            return MalformedRequest(f"the header `{excerpt(name)}` has control characters in it")
    if message.version not in (HttpVersion10, HttpVersion11):
        major, minor = message.version
        return MalformedRequest(f"HTTP/{major}.{minor} is not spoken here, but HTTP/1.1 is")
    if message.method == hdrs.METH_CONNECT:
        return NotImplementedHere("this is no proxy: there is no CONNECT here")
    return _transfer_fault(message) or _target_fault(message) or _expectation_fault(message)


def head_too_large(max_head: int) -> HeadersTooLarge:
    """The target and the headers together are too much."""
    return HeadersTooLarge(f"the target and the headers are longer in all than `limits.max_head_bytes`, {max_head}")


def _method_fault(reason: str) -> str:
    if "HTTPS" in reason:
        return "it looks like TLS; use http://"
    return "the first line does not begin with a method"


def _transfer_fault(message: RawRequestMessage) -> OsaurusError | None:
    """Codings that others might read differently, which is how requests are smuggled (RFC 9112, 6.1 and 11.2)."""
    if hdrs.TRANSFER_ENCODING not in message.headers:
        return None
    if message.version == HttpVersion10 or hdrs.CONTENT_LENGTH in message.headers:
        return MalformedRequest("a request of HTTP/1.0 or with a `Content-Length` can have no `Transfer-Encoding`")
    codings = [
        coding.strip().lower()
        for value in message.headers.getall(hdrs.TRANSFER_ENCODING)
        for coding in value.split(",")
    ]
    if codings == ["chunked"]:
        return None
    if codings.count("chunked") > 1:
        return MalformedRequest("a body can be chunked once only")
    return NotImplementedHere("no `Transfer-Encoding` but `chunked` is understood")


def _target_fault(message: RawRequestMessage) -> OsaurusError | None:
    """A target that is a whole URL must say what `Host` says (RFC 9112, 3.2.2), so that one check does for both."""
    if not message.url.absolute:
        return None
    if message.url.scheme not in ("http", "https"):
        return MalformedRequest("the request's target is no path and no http URL")
    host = message.headers.get(hdrs.HOST, "")
    if _without_default_port(message.url.raw_authority) != _without_default_port(host):
        return Forbidden(
            f"the request's target is on {excerpt(message.url.raw_authority)!r}, and `Host` says {excerpt(host)!r}"
        )
    return None


def _without_default_port(authority: str) -> str:
    return _DEFAULT_PORT.sub("", authority.lower())


def _expectation_fault(message: RawRequestMessage) -> OsaurusError | None:
    expected = message.headers.get(hdrs.EXPECT)
    if expected is None or expected.lower() == CONTINUE or message.version == HttpVersion10:
        return None
    return ExpectationFailed(f"`Expect: {excerpt(expected)}` cannot be met; `{CONTINUE}` can")
