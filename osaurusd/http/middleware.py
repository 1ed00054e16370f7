"""What every request passes through: its id, the access log, metrics, and the conversion of errors to responses."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from osaurusd.activity import ActiveRequest, Activity, set_origin
from osaurusd.buffered_bytes import Reservation
from osaurusd.config import Config
from osaurusd.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, OsaurusError
from osaurusd.http.admission import Admission, Deadline
from osaurusd.http.connection import connection_of
from osaurusd.http.errors import as_osaurus_error, error_headers, excerpt, status_of
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.paths import describe_unknown_path
from osaurusd.http.request import CONTEXT, RequestContext, check_head
from osaurusd.http.routes import RouteGroup, RouteHandler
from osaurusd.lean_imports import structlog
from osaurusd.log import get_logger

log = get_logger(__name__)

MAX_LOGGED_PATH = 256
REQUEST_ID_HEADER = "x-request-id"

# Safe in logs, in headers and on a command line.
_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

DISCONNECTED = "disconnected"
"""The status of a request whose client disconnected, in the log and in metrics."""

REQUEST_ID = web.RequestKey("REQUEST_ID", str)


class RequestPipeline:
    """The outer middlewares of an application.

    Args:
        groups: the application's route groups.
        owners: the group of each of the application's resources.
        config: returns the configuration in force.
        admission: counts requests and body bytes.
        metrics: counts requests by endpoint and status.
    """

    def __init__(
        self,
        groups: Sequence[RouteGroup],
        owners: Mapping[web.AbstractResource, RouteGroup],
        config: Callable[[], Config],
        admission: Admission,
        metrics: HttpMetrics | None,
    ) -> None:
        self._groups = groups
        self._owners = owners
        self._paths = frozenset(resource.canonical for resource in owners)
        self._config = config
        self._admission = admission
        self._metrics = metrics

    @web.middleware
    async def observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request an id, mark its connection as busy, and log and count how the request ended."""
        started = time.perf_counter()
        request[REQUEST_ID] = _request_id(request)
        connection = connection_of(request)
        status: int | str = DISCONNECTED
        with (
            structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]),
            connection.serve_request(request) if connection is not None else contextlib.nullcontext(),
        ):
            try:
                response = await handler(request)
                if not (CONTEXT in request and request[CONTEXT].disconnected):
                    status = response.status
                return response
            finally:
                milliseconds = round((time.perf_counter() - started) * 1000, 1)
                if self._metrics is not None:
                    self._metrics.count(_endpoint(request), status)
                path = request.path[:MAX_LOGGED_PATH]
                log.info("request", method=request.method, path=path, status=status, ms=milliseconds)

    @web.middleware
    async def respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Attach the request's context, check its head, and convert every exception to an error response."""
        now = asyncio.get_running_loop().time()
        reservation = Reservation(self._admission.buffered)
        context = RequestContext(self._config(), self._admission, self._group_of(request), now, reservation)
        request[CONTEXT] = context
        set_origin(context.group.name, _endpoint(request))
        try:
            with reservation.used():
                response = await self._handle(request, context, handler)
        finally:
            context.end()
        if not response.prepared and not request.content.is_eof():
            # The client may send the rest of the body; it must not be taken for the next request.
            response.force_close()
        return response

    async def add_request_id(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal handler: name the request in its response."""
        if REQUEST_ID in request:
            response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
            if CONTEXT in request and (header := request[CONTEXT].group.request_id_header):
                response.headers[header] = request[REQUEST_ID]

    async def _handle(self, request: web.Request, context: RequestContext, handler: Handler) -> web.StreamResponse:
        try:
            check_head(request, context.config.limits)
        except OsaurusError as error:
            log.info("request rejected", code=str(error.code), reason=error.message)
            response = _render(context.group, error)
            response.force_close()
            return response
        try:
            return await handler(request)
        except web.HTTPException as error:
            return self._convert_http_exception(request, context.group, error)
        except Exception as error:  # noqa: BLE001  the boundary: an error without a code is logged and hidden
            return _convert(request, context.group, error)

    def _group_of(self, request: web.Request) -> RouteGroup:
        resource = request.match_info.route.resource
        if resource is not None:
            return self._owners[resource]
        owner = max(self._groups, key=lambda group: len(group.owned_prefix(request.path)))
        return owner if owner.owned_prefix(request.path) else self._groups[0]

    def _convert_http_exception(
        self, request: web.Request, group: RouteGroup, error: web.HTTPException
    ) -> web.Response:
        if isinstance(error, web.HTTPMethodNotAllowed):
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.method} is not allowed for {excerpt(request.path)}; use {allowed}"
            response = _render(group, MethodNotAllowed(message))
            response.headers[hdrs.ALLOW] = allowed
            return response
        if isinstance(error, web.HTTPNotFound):
            return _render(group, NotFound(describe_unknown_path(request.path, self._paths)))
        return _render(group, InvalidRequest(error.text or error.reason))


def _request_id(request: web.Request) -> str:
    """Return the id that the client or a proxy chose, or a new one if there is none that is safe to repeat."""
    values = request.headers.getall(REQUEST_ID_HEADER, [])
    if len(values) == 1 and _CLIENT_REQUEST_ID.fullmatch(values[0]):
        return values[0]
    return uuid.uuid4().hex


def admitted(handler: RouteHandler, activity: Activity) -> RouteHandler:
    """Wrap a handler that runs a model.

    It counts against `limits.max_requests`, is subject to `limits.request_seconds`, and is not called while the daemon
    drains.

    Args:
        handler: the handler.
        activity: records how its requests end.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        context = request[CONTEXT]
        deadline = context.deadline = Deadline(context.config.limits.request_seconds, context.started_at)
        with _recorded(request, activity) as entry:
            context.admission.check_open()
            with context.admission.admit():
                async with deadline.enforce():
                    response = await handler(request)
                    entry.status = response.status
                    return response

    return handle


@contextlib.contextmanager
def _recorded(request: web.Request, activity: Activity) -> Iterator[ActiveRequest]:
    """Record in an entry how the block that handles a request ends."""
    with activity.track_http() as entry:
        try:
            yield entry
        except (asyncio.CancelledError, ConnectionError):
            entry.cancelled = True
            raise
        except Exception as error:
            known = error if isinstance(error, OsaurusError) else InternalError("")
            entry.fail(known.code, status_of(known))
            raise
        entry.cancelled |= request[CONTEXT].disconnected


def _endpoint(request: web.Request) -> str:
    """Return the route's path without version prefix, or `other` for an unknown path."""
    resource = request.match_info.route.resource
    return "other" if resource is None else resource.canonical.removeprefix("/v1") or "/"


def _render(group: RouteGroup, error: OsaurusError) -> web.Response:
    response = group.error_response(error)
    response.headers.update(error_headers(error))
    return response


def _convert(request: web.Request, group: RouteGroup, error: Exception) -> web.Response:
    connected = request.transport is not None and not request.transport.is_closing()
    if isinstance(error, ConnectionError) and not connected:
        raise error
    response = _render(group, as_osaurus_error(error))
    if request.writer.output_size > 0:
        # A second response would be read as part of the first one. The client sees the connection break instead.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the response failed after its headers were sent") from error
    return response
