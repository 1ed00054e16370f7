"""Requesting ranges of a model's files from a paired host."""

import ssl
from pathlib import Path
from urllib.parse import quote

import httpx2

from osaurusd.downloads.worker.errors import FileChanged, PullError, TransientError
from osaurusd.downloads.worker.ranges import (
    TRANSIENT,
    RangeResponse,
    check_range,
    check_whole_file,
    parse_retry_after,
    unquote_etag,
)
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.groups.messages import CopyTask
from osaurusd.hosts.identity import Identity
from osaurusd.hosts.tls import client_context
from osaurusd.wire.errors import ErrorCode

_CONNECT_SECONDS = 10.0


def create_client(task: CopyTask) -> httpx2.AsyncClient:
    """Return a client for the host of a task, which never uses a proxy.

    Raises:
        PullError: this host's identity cannot be read.
    """
    try:
        context = client_context(Identity(Path(task.identity), certificate="", fingerprint=""), task.host)
    except (OSError, ssl.SSLError) as error:
        raise PullError(f"the identity of this host is unusable: {error}") from error
    limits = httpx2.Limits(max_connections=task.connections, max_keepalive_connections=task.connections)
    transport = httpx2.AsyncHTTPTransport(context, trust_env=False, limits=limits)
    timeout = httpx2.Timeout(task.stall_seconds, connect=_CONNECT_SECONDS, pool=None)
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout)


class HostSource:
    """The files of one model on a paired host.

    Args:
        client: connected to that host only.
        task: names the host and the model.
    """

    def __init__(self, client: httpx2.AsyncClient, task: CopyTask) -> None:
        self._client = client
        self._host = task.host.name
        self._base = f"{task.host.url.rstrip('/')}/v0/models/{quote(task.model, safe='')}/files/"

    async def open(self, file: HubFile, begin: int, end: int) -> RangeResponse:
        """Request a range; see `downloads.worker.ranges.Source`."""
        headers = {"accept-encoding": "identity", "range": f"bytes={begin}-{end - 1}"}
        request = self._client.build_request("GET", self._base + quote(file.name), headers=headers)
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            await self._check(file, response, begin, end)
        except (TransientError, FileChanged, PullError):
            await response.aclose()
            raise
        return RangeResponse(response, unquote_etag(response.headers.get("etag")))

    async def _check(self, file: HubFile, response: httpx2.Response, begin: int, end: int) -> None:
        """Raise an error unless the body is the requested range."""
        status = response.status_code
        if status == 206:
            check_range(file, response, begin)
        elif status == 200:
            check_whole_file(file, response, begin, end)
        else:
            message = f'{file.name}: host "{self._host}" responded with status {status}{await _reason(response)}'
            if status in TRANSIENT or status >= 500:
                raise TransientError(message, parse_retry_after(response.headers.get("retry-after")))
            if status == 416:
                raise FileChanged(message)
            raise PullError(message, ErrorCode.FORBIDDEN if status in (401, 403) else ErrorCode.PULL_FAILED)


async def _reason(response: httpx2.Response) -> str:
    """Return the message of an error response, if it has one."""
    try:
        await response.aread()
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError, httpx2.HTTPError):
        return ""
    return f": {message}"
