"""Forwards requests of the management page to the daemon over its Unix socket."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs, web

from osaurusctl.errors import DaemonNotRunning, InvalidReply
from osaurusctl.ui.errors import RequestError
from osaurusd.wire.admin import API_HEADER, API_VERSION, SOCKET_HOST, Route
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullRequest, PullRoute, SearchRequest

CONNECT_SECONDS = 5.0

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Conversations with images are large."""

FORWARDED = (
    ("GET", "/ui/snapshot"),
    ("GET", "/ui/stream"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("GET", Route.STATUS),
    ("GET", Route.MODELS),
    ("POST", Route.DETAILS),
    ("GET", Route.WORKERS),
    ("POST", Route.LOAD),
    ("POST", Route.UNLOAD),
    ("GET", Route.PINS),
    ("POST", Route.PINS),
    ("GET", Route.EVENTS),
    ("POST", Route.RELOAD),
    ("GET", PullRoute.PULLS),
    ("POST", PullRoute.PULLS),
    ("POST", PullRoute.WATCH),
    ("POST", PullRoute.CANCEL),
    ("POST", PullRoute.SEARCH),
)
"""What the page can do with the daemon. Keys, imports and the shutdown are for the terminal only."""

_WITH_TOKEN: Mapping[str, type[PullRequest] | type[SearchRequest]] = {
    PullRoute.PULLS: PullRequest,
    PullRoute.SEARCH: SearchRequest,
}
"""Requests to which the Hugging Face token of the terminal is added."""

_CHUNK_BYTES = 64 * 1024


class DaemonProxy:
    """Sends requests to the daemon, which may stop and start again meanwhile.

    Args:
        socket: its Unix socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def run(self, _: web.Application) -> Any:
        """Keep the connections open while the server runs."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.UnixConnector(str(self._socket), force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            yield

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Handle a request of `FORWARDED`."""
        body = await request.read() if request.body_exists else None
        if body is not None and (kind := _WITH_TOKEN.get(request.path)) is not None:
            decoded = decode(body, kind)
            body = msgspec.json.encode(msgspec.structs.replace(decoded, token=os.environ.get("HF_TOKEN") or None))
        path = request.path
        if request.query.get("follow") == "1":
            path += "?follow=1"
        return await self.relay(request, request.method, path, body)

    async def relay(self, request: web.Request, method: str, path: str, body: bytes | None) -> web.StreamResponse:
        """Send a request to the daemon, and answer the page's request with the response as it arrives."""
        async with self._open(method, path, body) as reply:
            response = web.StreamResponse(status=reply.status)
            response.content_type = reply.content_type
            if reply.content_length is not None:
                response.content_length = reply.content_length
            await response.prepare(request)
            try:
                async for chunk in reply.content.iter_any():
                    await response.write(chunk)
            except aiohttp.ClientError as error:
                # The page sees that the response is incomplete.
                raise ConnectionResetError("the daemon closed the connection") from error
            await response.write_eof()
            return response

    async def send(self, method: str, path: str, body: object) -> Any:
        """Send a request to the daemon, and return the decoded response.

        Raises:
            DaemonNotRunning: the daemon does not run.
            RequestError: the daemon's error.
        """
        async with self._open(method, path, msgspec.json.encode(body)) as reply:
            content = msgspec.json.decode(await reply.read())
            if reply.status >= 400:
                error = content["error"]
                raise RequestError(reply.status, error["code"], error["message"], error["param"])
            return content

    def _open(self, method: str, path: str, body: bytes | None) -> "_Exchange":
        assert self._session is not None
        headers = {hdrs.HOST: SOCKET_HOST, API_HEADER: str(API_VERSION), hdrs.CONTENT_TYPE: "application/json"}
        return _Exchange(self._session.request(method, f"http://{SOCKET_HOST}{path}", data=body, headers=headers))


class _Exchange:
    """A request whose failure to connect is reported as such."""

    def __init__(self, request: Any) -> None:
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._request.__aenter__()
        except aiohttp.ClientConnectorError as error:
            raise DaemonNotRunning from error
        except aiohttp.ClientError as error:
            raise InvalidReply("the connection was closed before the reply was complete") from error
        return response

    async def __aexit__(self, *details: Any) -> None:
        await self._request.__aexit__(*details)


def decode(body: bytes, kind: Any) -> Any:
    """Decode the body of a request.

    Raises:
        RequestError: it is invalid.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RequestError(400, ErrorCode.INVALID_REQUEST, f"the request body is invalid: {error}") from error
