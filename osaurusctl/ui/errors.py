"""Errors of the management page as JSON, in the format of the daemon."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from aiohttp import web

from osaurusctl.errors import CliError
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

_STATUS: Mapping[str, int] = MappingProxyType({ErrorCode.CONFIG_ERROR: 400, "daemon_not_running": 503})
"""The status of failures of the commands that the page runs; others are 500."""


class RequestError(Exception):
    """A request that is rejected."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = ErrorBody(message=message, type=kind, code=code, param=param)


def from_cli_error(error: CliError) -> RequestError:
    """Convert the failure of a command."""
    hint = f"; {error.hint}" if error.hint else ""
    body = error.body
    return RequestError(_STATUS.get(body.code or "", 500), body.code or "failure", f"{error}{hint}", body.param)


def error_response(error: RequestError) -> web.Response:
    """Render an error."""
    return web.Response(
        status=error.status, body=msgspec.json.encode(ErrorEnvelope(error.body)), content_type="application/json"
    )
