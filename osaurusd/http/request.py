"""What the server adds to a request: its context, checks of its head, and its body within limits."""

import asyncio
import contextlib
import re
import urllib.parse
from collections.abc import Callable

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from osaurusd.buffered_bytes import Reservation
from osaurusd.config import Config, Limits
from osaurusd.errors import (
    ExpectationFailed,
    Forbidden,
    HeadersTooLarge,
    MalformedRequest,
    NotImplementedHere,
    OsaurusError,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedEncoding,
    UriTooLong,
)
from osaurusd.http.admission import Admission, Deadline
from osaurusd.http.errors import excerpt
from osaurusd.http.routes import RouteGroup

READ_BYTES = 1024 * 1024
"""Large enough that a large body is not paused and resumed for every segment."""

_CONTINUE = "100-continue"
_DEFAULT_PORT = re.compile(r":(80)?$")


class RequestContext(msgspec.Struct):
    """The state of one request.

    Attributes:
        config: the configuration when the request arrived.
        group: the route group that renders its errors.
        deadline: set for admitted routes.
        reservation: the bytes of the body and of images, which count against `limits.max_buffered_bytes`.
        owner: identifies the API key of the client; empty if none was required.
        check_key: raises `InvalidApiKey` once the API key is revoked.
        disconnected: the client was found to be gone when a part of the response was sent.
    """

    config: Config
    admission: Admission
    group: RouteGroup
    started_at: float
    reservation: Reservation
    deadline: Deadline | None = None
    owner: str = ""
    check_key: Callable[[], object] = bool
    disconnected: bool = False
    _held: bool = False

    def hold_bytes(self, held: contextlib.ExitStack) -> None:
        """Count the bytes of the request until `held` is closed, instead of until `end`."""
        held.callback(self.reservation.release)
        self._held = True

    def end(self) -> None:
        """The request ends: count its bytes no longer."""
        if not self._held:
            self.reservation.release()


CONTEXT = web.RequestKey("CONTEXT", RequestContext)


def check_head(request: web.Request, limits: Limits) -> None:
    """Check what aiohttp's parser accepts and this server does not.

    Raises:
        OsaurusError: the request must not be processed any further, and its connection must be closed.
    """
    _check_size(request, limits)
    if request.version not in (HttpVersion10, HttpVersion11):
        major, minor = request.version
        raise MalformedRequest(f"HTTP/{major}.{minor} is not supported; use HTTP/1.1")
    if request.method == hdrs.METH_CONNECT:
        raise NotImplementedHere("the server is not a proxy; CONNECT is not supported")
    _check_transfer_encoding(request)
    _check_target(request)
    expectation = request.headers.get(hdrs.EXPECT)
    if expectation is not None and expectation.lower() != _CONTINUE and request.version != HttpVersion10:
        raise ExpectationFailed(f"`Expect: {excerpt(expectation)}` is not supported; only `{_CONTINUE}` is")


async def defer_continue(_: web.Request) -> None:
    """Replace aiohttp's handler of `Expect: 100-continue`: `read_body` answers it, after the checks have passed."""


async def read_body(request: web.Request) -> bytearray:
    """Read the whole body. Its bytes count against `limits.max_buffered_bytes` until the request ends.

    Raises:
        UnsupportedEncoding: the body is compressed.
        RequestTooLarge: the body exceeds `server.max_body_bytes`.
        RequestTimeout: the body arrives too slowly.
        TooManyRequests: the bodies of all requests exceed `limits.max_buffered_bytes`.
        MalformedRequest: the body does not match its framing.
    """
    context = request[CONTEXT]
    max_bytes = context.config.server.max_body_bytes
    encodings = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING, []))
    if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings.split(",")):
        raise UnsupportedEncoding("compressed request bodies are not supported; send the body without Content-Encoding")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    _send_continue(request)
    body = bytearray()
    end = asyncio.get_running_loop().time() + context.config.limits.body_seconds
    while chunk := await _next_chunk(request, context.config.limits, end):
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        context.reservation.add(len(chunk))
        body += chunk
    return body


async def _next_chunk(request: web.Request, limits: Limits, end: float) -> bytes:
    remaining = end - asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(max(0.0, min(remaining, limits.body_stall_seconds))):
            return await request.content.read(READ_BYTES)
    except web.RequestPayloadError as error:
        raise MalformedRequest(f"the request body is malformed: {excerpt(str(error))}") from error
    except TimeoutError as error:
        if remaining < limits.body_stall_seconds:
            raise RequestTimeout(
                f"the request body took longer than {limits.body_seconds:g} s (`limits.body_seconds`)"
            ) from error
        raise RequestTimeout(
            f"no data of the request body arrived for {limits.body_stall_seconds:g} s (`limits.body_stall_seconds`)"
        ) from error


def _send_continue(request: web.Request) -> None:
    expects_continue = request.headers.get(hdrs.EXPECT, "").lower() == _CONTINUE
    if expects_continue and request.version == HttpVersion11 and request.transport and not request.content.is_eof():
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(max_bytes: int) -> OsaurusError:
    return RequestTooLarge(f"the request body is larger than {max_bytes} bytes (`server.max_body_bytes`)")


def _check_size(request: web.Request, limits: Limits) -> None:
    if len(request.raw_path) > limits.max_request_line_bytes:
        raise UriTooLong(
            f"the URL is longer than {limits.max_request_line_bytes} bytes (`limits.max_request_line_bytes`)"
        )
    if len(request.raw_headers) > limits.max_headers:
        raise HeadersTooLarge(f"the request has more than {limits.max_headers} headers (`limits.max_headers`)")
    sizes = [len(name) + len(value) + len(": \r\n") for name, value in request.raw_headers]
    if max(sizes, default=0) > limits.max_header_bytes:
        raise HeadersTooLarge(f"a header is longer than {limits.max_header_bytes} bytes (`limits.max_header_bytes`)")
    if sum(sizes) + len(request.raw_path) > limits.max_head_bytes:
        raise head_too_large(limits)


def head_too_large(limits: Limits) -> OsaurusError:
    return HeadersTooLarge(f"URL and headers are longer than {limits.max_head_bytes} bytes (`limits.max_head_bytes`)")


def _check_transfer_encoding(request: web.Request) -> None:
    """Reject framing that a proxy may read differently, which enables request smuggling (RFC 9112, 6.1 and 11.2)."""
    values = request.headers.getall(hdrs.TRANSFER_ENCODING, [])
    if not values:
        return
    if request.version == HttpVersion10 or hdrs.CONTENT_LENGTH in request.headers:
        raise MalformedRequest("`Transfer-Encoding` must not be combined with `Content-Length` or HTTP/1.0")
    codings = [coding.strip(" \t").lower() for value in values for coding in value.split(",")]
    if codings != ["chunked"]:
        raise NotImplementedHere("the only supported `Transfer-Encoding` is `chunked`")


def _check_target(request: web.Request) -> None:
    """Require that an absolute-form target names the same host as `Host`, so that checking `Host` covers both."""
    target = request.raw_path
    if target.startswith("/") or target == "*":
        return
    url = urllib.parse.urlsplit(target)
    if url.scheme not in ("http", "https"):
        raise MalformedRequest("the request target is neither a path nor an HTTP URL")
    host = request.headers.get(hdrs.HOST, "")
    if _without_default_port(url.netloc) != _without_default_port(host):
        raise Forbidden(f'the request target names the host "{excerpt(url.netloc)}", but `Host` is "{excerpt(host)}"')


def _without_default_port(authority: str) -> str:
    return _DEFAULT_PORT.sub("", authority.lower())
