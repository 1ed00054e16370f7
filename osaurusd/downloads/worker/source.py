"""Requesting ranges of a file, following redirects from the hub to its CDN. The token is only sent to the hub."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx2
from httpx2 import URL
from huggingface_hub import hf_hub_url

from osaurusd.downloads.worker.errors import FileChanged, PullError, RangesUnsupported, TransientError, UrlExpired
from osaurusd.downloads.worker.ranges import (
    TRANSIENT,
    RangeResponse,
    check_range,
    check_whole_file,
    parse_retry_after,
    unquote_etag,
)
from osaurusd.downloads.worker.selection import HubFile
from osaurusd.wire.errors import ErrorCode

_MAX_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class _Address:
    """The URL of a file's content; `linked_etag` is the ETag that the hub states for it."""

    url: URL
    linked_etag: str | None = None


class FileSource:
    """The files of one repository at one commit.

    Args:
        client: the HTTP client.
        endpoint: the URL of the hub, such as `https://huggingface.co`.
        headers: headers for the hub; other hosts do not get `authorization`.
        repo: `ORG/NAME`.
        commit: the commit.
    """

    def __init__(
        self, client: httpx2.AsyncClient, endpoint: str, headers: Mapping[str, str], repo: str, commit: str
    ) -> None:
        self._client = client
        self._hub = URL(endpoint)
        self._headers = {name: value for name, value in headers.items() if name.lower() != _AUTHORIZATION}
        self._authorization = {name: value for name, value in headers.items() if name.lower() == _AUTHORIZATION}
        self._endpoint, self._repo, self._commit = endpoint, repo, commit
        self._addresses: dict[str, _Address] = {}

    async def open(self, file: HubFile, begin: int, end: int) -> RangeResponse:
        """Request a range; see `Source`. Redirects are followed."""
        known = self._addresses.get(file.name)
        address = known or _Address(self._hub_url(file))
        for _ in range(_MAX_REDIRECTS):
            response = await self._get(address.url, begin, end)
            if response.status_code in _REDIRECTS:
                address = self._follow_redirect(file, address, response)
                await response.aclose()
                continue
            try:
                self._check_response(file, address, response, begin, end)
            except (TransientError, FileChanged, RangesUnsupported, PullError) as error:
                await response.aclose()
                if isinstance(error, UrlExpired) and self._addresses.get(file.name) is known:
                    self._addresses.pop(file.name, None)
                raise
            self._addresses[file.name] = address
            return RangeResponse(response, _validator(address, response))
        raise PullError(f"{file.name}: the hub redirected more than {_MAX_REDIRECTS} times")

    def _hub_url(self, file: HubFile) -> URL:
        url = hf_hub_url(self._repo, file.name, revision=self._commit, endpoint=self._endpoint)
        return URL(url)

    async def _get(self, url: URL, begin: int, end: int) -> httpx2.Response:
        # With compression, the range would refer to the compressed content.
        headers = {**self._headers, "accept-encoding": "identity", "range": f"bytes={begin}-{end - 1}"}
        if _is_same_origin(url, self._hub):
            headers |= self._authorization
        request = self._client.build_request("GET", url, headers=headers)
        return await self._client.send(request, stream=True, follow_redirects=False)

    def _follow_redirect(self, file: HubFile, address: _Address, response: httpx2.Response) -> _Address:
        """Return the target of a redirect. The linked ETag is only accepted from the hub itself."""
        try:
            url = address.url.join(response.headers["location"])
        except (KeyError, httpx2.InvalidURL) as error:
            raise TransientError(f"{file.name}: {address.url.host} sent an invalid redirect") from error
        if url.scheme not in ("http", "https") or (address.url.scheme == "https" and url.scheme == "http"):
            raise PullError(f"{file.name}: {address.url.host} redirects to an insecure URL")
        on_hub = _is_same_origin(address.url, self._hub)
        linked_etag = unquote_etag(response.headers.get("X-Linked-Etag")) if on_hub else None
        return replace(address, url=url, linked_etag=linked_etag or address.linked_etag)

    def _check_response(
        self, file: HubFile, address: _Address, response: httpx2.Response, begin: int, end: int
    ) -> None:
        """Raise an error unless the body is the requested range."""
        if response.status_code >= 300:
            raise self._status_error(file, address, response)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TransientError(f"{file.name}: {address.url.host} sent a compressed response")
        if response.status_code == 200:
            check_whole_file(file, response, begin, end)
        elif response.status_code == 206:
            check_range(file, response, begin)
        else:
            raise TransientError(f"{file.name}: {address.url.host} responded with status {response.status_code}")

    def _status_error(self, file: HubFile, address: _Address, response: httpx2.Response) -> Exception:
        status, host = response.status_code, address.url.host
        message = f"{file.name}: {host} responded with status {status} {response.reason_phrase}".rstrip()
        if status in TRANSIENT or status >= 500:
            return TransientError(message, parse_retry_after(response.headers.get("retry-after")))
        if status == 416:
            return FileChanged(f"{file.name}: the file on {host} is smaller than the hub states")
        if status in _EXPIRED and (not _is_same_origin(address.url, self._hub) or file.name in self._addresses):
            return UrlExpired(message)
        if status in (401, 403):
            return PullError(f"{self._repo}: the hub denies access to {file.name} ({status})", ErrorCode.FORBIDDEN)
        return PullError(message)


def _is_same_origin(one: URL, other: URL) -> bool:
    # Default ports are None.
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _validator(address: _Address, response: httpx2.Response) -> str | None:
    etags = [etag for etag in (address.linked_etag, unquote_etag(response.headers.get("etag"))) if etag]
    return " ".join(etags) or None
