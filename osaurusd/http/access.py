"""One id and one log line for every request."""

import time
import uuid

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from osaurusd.http import metrics
from osaurusd.log import get_logger

log = get_logger(__name__)

MAX_PATH = 256
"""So much of a path is logged: enough to tell what was meant."""

REQUEST_ID = web.RequestKey("REQUEST_ID", str)


def record_access(app: web.Application) -> None:
    """Give each request an id, put it into the answer's `x-request-id` and into all it logs, and log how it ended."""
    app.middlewares.append(_access)
    app.on_response_prepare.append(_tell_id)


@web.middleware
async def _access(request: web.Request, handler: Handler) -> web.StreamResponse:
    started = time.perf_counter()
    request[REQUEST_ID] = uuid.uuid4().hex
    status: int | str = "gone"
    with structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]):
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            metrics.count(request, status)
            log.info("request", method=request.method, path=request.path[:MAX_PATH], status=status, ms=milliseconds)


async def _tell_id(request: web.Request, response: web.StreamResponse) -> None:
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]
