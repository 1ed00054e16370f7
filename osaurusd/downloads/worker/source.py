"""Asking for a range of a file: from the hub to wherever the hub sends us, the token going no further than the hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import hdrs
from huggingface_hub import hf_hub_url
from yarl import URL

from osaurusd.downloads.worker.choice import HubFile
from osaurusd.downloads.worker.failure import Changed, Expired, PullError, RangesIgnored, Retry
from osaurusd.wire.errors import ErrorCode

_HOPS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429})
_GONE = frozenset({400, 401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class _Address:
    """Where a file's bytes come from; `linked` is what the hub calls the content behind it."""

    url: URL
    linked: str | None = None


@dataclass(frozen=True)
class Reply:
    """A response whose body begins at the byte that was asked for. `validator` names the version of the file."""

    response: aiohttp.ClientResponse
    validator: str | None


class Source:
    """The files of one repo at one commit.

    Args:
        session: makes the requests.
        endpoint: the hub, such as `https://huggingface.co`.
        headers: for the hub; `authorization` is left out for every other host.
    """

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: str, headers: Mapping[str, str], repo: str, commit: str
    ) -> None:
        self._session = session
        self._hub = URL(endpoint)
        self._headers = {name: value for name, value in headers.items() if name.lower() != _AUTHORIZATION}
        self._secret = {name: value for name, value in headers.items() if name.lower() == _AUTHORIZATION}
        self._endpoint, self._repo, self._commit = endpoint, repo, commit
        self._known: dict[str, _Address] = {}

    async def open(self, file: HubFile, begin: int, end: int) -> Reply:
        """Ask for the bytes from `begin` up to `end`; the caller closes the response.

        Raises:
            Retry: it failed in a way that may pass; Expired: at once with another address.
            Changed: the file is not as long as it should be.
            RangesIgnored: the server would send it from its beginning.
            PullError: it will not be sent.
            aiohttp.ClientError, TimeoutError, OSError: no connection.
        """
        known = self._known.get(file.name)
        address = known or _Address(self._address_on_hub(file))
        for _ in range(_HOPS):
            response = await self._get(address.url, begin, end)
            if response.status in _REDIRECTS:
                address = self._next(file, address, response)
                response.close()
                continue
            try:
                self._check(file, address, response, begin, end)
            except (Retry, Changed, RangesIgnored, PullError) as error:
                response.close()
                if isinstance(error, Expired) and self._known.get(file.name) is known:
                    self._known.pop(file.name, None)
                raise
            self._known[file.name] = address
            return Reply(response, _validator(address, response))
        raise PullError(f"{file.name}: the hub redirects more than {_HOPS} times")

    def _address_on_hub(self, file: HubFile) -> URL:
        url = hf_hub_url(self._repo, file.name, revision=self._commit, endpoint=self._endpoint)
        return URL(url, encoded=True)

    async def _get(self, url: URL, begin: int, end: int) -> aiohttp.ClientResponse:
        # Compressed, a range would be one of something else.
        headers = {**self._headers, "accept-encoding": "identity", "range": f"bytes={begin}-{end - 1}"}
        if url.origin() == self._hub.origin():
            headers |= self._secret
        return await self._session.get(url, headers=headers, allow_redirects=False)

    def _next(self, file: HubFile, address: _Address, response: aiohttp.ClientResponse) -> _Address:
        """Where a redirect leads. Only the hub itself is believed what the content is called."""
        try:
            # A signature covers the address as it is spelled.
            url = address.url.join(URL(response.headers[hdrs.LOCATION], encoded=True))
        except (KeyError, ValueError) as error:
            raise Retry(f"{file.name}: {address.url.host} redirects to nowhere") from error
        if url.scheme not in ("http", "https") or (address.url.scheme == "https" and url.scheme == "http"):
            raise PullError(f"{file.name}: {address.url.host} redirects to an unsafe address")
        on_hub = address.url.origin() == self._hub.origin()
        linked = _opaque(response.headers.get("X-Linked-Etag")) if on_hub else None
        return replace(address, url=url, linked=linked or address.linked)

    def _check(self, file: HubFile, address: _Address, response: aiohttp.ClientResponse, begin: int, end: int) -> None:
        """Whether the body is the range that was asked for."""
        if response.status >= 300:
            self._refuse(file, address, response)
        if response.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise Retry(f"{file.name}: {address.url.host} sends it compressed")
        if response.status == 200:
            _check_whole(file, response, begin, end)
        elif response.status == 206:
            _check_range(file, response, begin)
        else:
            raise Retry(f"{file.name}: {address.url.host} answers {response.status}")

    def _refuse(self, file: HubFile, address: _Address, response: aiohttp.ClientResponse) -> None:
        status, host = response.status, address.url.host
        message = f"{file.name}: {host} answers {status} {response.reason or ''}".rstrip()
        if status in _PASSING or status >= 500:
            raise Retry(message, _seconds(response.headers.get(hdrs.RETRY_AFTER)))
        if status == 416:
            raise Changed(f"{file.name}: {host} has fewer bytes of it than the hub says")
        if status in _GONE and (address.url.origin() != self._hub.origin() or file.name in self._known):
            raise Expired(message)
        if status in (401, 403):
            raise PullError(f"{self._repo}: the hub refuses {file.name} ({status})", ErrorCode.FORBIDDEN)
        raise PullError(message)


def _check_whole(file: HubFile, response: aiohttp.ClientResponse, begin: int, end: int) -> None:
    length = response.content_length
    if length is not None and length != file.size:
        raise Changed(f"{file.name}: {response.url.host} sends {length} bytes of it, and the hub lists {file.size}")
    if begin != 0 or end != file.size:
        raise RangesIgnored(file.name)


def _check_range(file: HubFile, response: aiohttp.ClientResponse, begin: int) -> None:
    found = _CONTENT_RANGE.fullmatch(response.headers.get(hdrs.CONTENT_RANGE, ""))
    if found is None or int(found[1]) != begin:
        raise Retry(f"{file.name}: {response.url.host} sends another range of it than was asked for")
    if found[3] not in ("*", str(file.size)):
        raise Changed(f"{file.name}: {response.url.host} has {found[3]} bytes of it, and the hub lists {file.size}")


def _validator(address: _Address, response: aiohttp.ClientResponse) -> str | None:
    names = [name for name in (address.linked, _opaque(response.headers.get(hdrs.ETAG))) if name]
    return " ".join(names) or None


def _opaque(etag: str | None) -> str | None:
    """An ETag's value, less the mark of weak ones and the quotes."""
    return etag.removeprefix("W/").strip('"') if etag else None


def _seconds(value: str | None) -> float | None:
    """`Retry-After` where it is a number; hubs send no dates."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
