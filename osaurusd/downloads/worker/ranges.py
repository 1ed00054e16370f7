"""Ranges of files over HTTP: what servers may respond, whichever of them it is."""

import re
from dataclasses import dataclass
from typing import Protocol

import httpx2

from osaurusd.downloads.worker.errors import FileChanged, RangesUnsupported, TransientError
from osaurusd.downloads.worker.selection import HubFile

TRANSIENT = frozenset({408, 425, 429})
"""Statuses below 500 of requests that may succeed later."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class RangeResponse:
    """A response whose body starts at the requested byte. `validator` identifies the version of the file."""

    response: httpx2.Response
    validator: str | None


class Source(Protocol):
    """Where files are received from."""

    async def open(self, file: HubFile, begin: int, end: int) -> RangeResponse:
        """Request the bytes from `begin` up to `end`; the caller closes the response.

        Raises:
            TransientError: the request may succeed later; UrlExpired: immediately, with a new URL.
            FileChanged: the file does not have the expected size.
            RangesUnsupported: the server would send the whole file.
            PullError: the file is not available.
            httpx2.TransportError: the connection failed.
        """


def check_whole_file(file: HubFile, response: httpx2.Response, begin: int, end: int) -> None:
    """Raise an error unless a response with the whole file is what was requested."""
    length = response.headers.get("content-length")
    if length is not None and length != str(file.size):
        raise FileChanged(f"{file.name} has {length} bytes on {response.url.host}, but {file.size} were announced")
    if begin != 0 or end != file.size:
        raise RangesUnsupported(f"{file.name}: {response.url.host} does not support ranges")


def check_range(file: HubFile, response: httpx2.Response, begin: int) -> None:
    """Raise an error unless a partial response begins where it should, and the file has the expected size."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or int(match[1]) != begin:
        raise TransientError(f"{file.name}: {response.url.host} sent a range other than the requested one")
    if match[3] not in ("*", str(file.size)):
        raise FileChanged(f"{file.name} has {match[3]} bytes on {response.url.host}, but {file.size} were announced")


def unquote_etag(etag: str | None) -> str | None:
    """Return an ETag's value without quotes and the prefix of weak ETags."""
    return etag.removeprefix("W/").strip('"') if etag else None


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header; hubs do not use dates."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
