"""Downloads a file to which a request refers by URL, from allowed hosts on the public internet only.

A client must not be able to reach this machine or its network through the daemon (server-side request forgery). So
every hop of a redirect is checked like the first URL; host names are resolved once, and the connection is made to an
address that was checked, which DNS rebinding cannot change. Proxies are not used, because they resolve names
themselves. What the server says about the content is ignored.
"""

import asyncio
import errno
import ipaddress
import os
import ssl
from collections.abc import Callable
from socket import AddressFamily

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    DummyCookieJar,
    TCPConnector,
    hdrs,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from osaurusd import __version__
from osaurusd.config import Vision
from osaurusd.errors import InvalidRequest
from osaurusd.http.errors import excerpt
from osaurusd.log import get_logger
from osaurusd.url_hosts import is_allowed

log = get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 8192

_REDIRECTS = (301, 302, 303, 307, 308)
_READ_BYTES = 64 * 1024
_HEADERS = {
    hdrs.ACCEPT: "image/*",
    # A compressed response could expand without limit.
    hdrs.ACCEPT_ENCODING: "identity",
    hdrs.USER_AGENT: f"osaurusd/{__version__}",
}

# IPv6 networks that translate to IPv4 (RFC 6052): the last 32 bits are the address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# Special networks that some releases of Python take for public ones: protocol assignments, and documentation.
_SPECIAL_V4 = ipaddress.IPv4Network("192.0.0.0/24")
_SPECIAL_V6 = ipaddress.IPv6Network("3fff::/20")

# Azure gives its virtual machines settings and credentials at a public address that only they can reach.
_AZURE = ipaddress.IPv4Address("168.63.129.16")


def is_public(address: Address) -> bool:
    """Whether an address belongs to a machine on the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        # Forms of an IPv4 address that no name server of a public host returns.
        if address.ipv4_mapped or address.sixtofour or address.teredo or address.is_site_local:
            return False
    if address in _SPECIAL_V4 or address in _SPECIAL_V6 or address == _AZURE:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class UrlFetcher:
    """Downloads files.

    Args:
        is_allowed_address: whether a connection to an address may be made.
        resolver: resolves host names.
    """

    def __init__(
        self, is_allowed_address: Callable[[Address], bool] = is_public, resolver: AbstractResolver | None = None
    ) -> None:
        self._is_allowed_address = is_allowed_address
        self._resolver = resolver
        self._ssl: ssl.SSLContext | None = None

    async def fetch(self, url: str, settings: Vision) -> bytes:
        """Return the file at a URL.

        Raises:
            InvalidRequest: the URL is not allowed, the file is too large, or it cannot be downloaded.
        """
        target = _parse(url)
        try:
            async with asyncio.timeout(settings.url_timeout_seconds):
                if self._ssl is None:
                    # Reads the certificates of the system, which blocks.
                    self._ssl = await asyncio.to_thread(_create_ssl_context)
                async with self._session(self._ssl) as session:
                    file = await self._follow(session, target, settings)
        except TimeoutError as error:
            limit = f"{settings.url_timeout_seconds:g} s (`vision.url_timeout_seconds`)"
            raise _failed(target, f"it took longer than {limit}") from error
        except ClientConnectorCertificateError as error:
            raise _failed(target, "its certificate is not trusted") from error
        except ClientConnectorDNSError as error:
            raise _failed(target, "its name cannot be resolved") from error
        except ClientConnectorError as error:
            raise _failed(target, f"the connection failed: {os.strerror(error.errno or errno.ECONNREFUSED)}") from error
        except (ClientError, OSError, ValueError) as error:
            raise _failed(target, excerpt(str(error) or type(error).__name__)) from error
        log.info("image downloaded", host=target.host, bytes=len(file))
        return file

    def _session(self, ssl_context: ssl.SSLContext) -> ClientSession:
        resolver = _CheckedResolver(self._resolver or ThreadedResolver(), self._is_allowed_address)
        connector = TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True, ssl=ssl_context)
        return ClientSession(
            connector=connector, cookie_jar=DummyCookieJar(), headers=_HEADERS, auto_decompress=False, trust_env=False
        )

    async def _follow(self, session: ClientSession, url: URL, settings: Vision) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            self._check(url, settings)
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or hdrs.LOCATION not in response.headers:
                    return await _read(response, settings.max_image_bytes)
                url = _parse(response.headers[hdrs.LOCATION], base=url)
        raise _failed(url, f"more than {MAX_REDIRECTS} redirects")

    def _check(self, url: URL, settings: Vision) -> None:
        """Check a URL before anything is requested; names are checked again when they are resolved."""
        host = url.host or ""
        if not is_allowed(host.rstrip("."), url.port or 0, settings.allowed_url_hosts):
            raise InvalidRequest(
                f"the daemon does not download images from {excerpt(url.authority)}, which is not in "
                "`vision.allowed_url_hosts`; send the content of the file in base64"
            )
        try:
            address = ipaddress.ip_address(host)
        except ValueError as error:
            if ":" in host:
                # aiohttp would connect to it without asking the resolver: `::1%` has an empty zone, for example.
                raise InvalidRequest(f"{excerpt(host)} is not a valid IPv6 address") from error
            return
        if not self._is_allowed_address(address):
            raise _not_public(host)


def _create_ssl_context() -> ssl.SSLContext:
    # Its library for the system's certificates slows the start down, and most daemons download no images.
    from osaurusd.platform.certificates import create_client_context  # noqa: PLC0415

    return create_client_context()


class _CheckedResolver(AbstractResolver):
    """Resolves host names to the allowed ones of their addresses."""

    def __init__(self, resolver: AbstractResolver, is_allowed_address: Callable[[Address], bool]) -> None:
        self._resolver = resolver
        self._is_allowed_address = is_allowed_address

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses.

        Raises:
            InvalidRequest: there is none.
        """
        results = await self._resolver.resolve(host, port, family)
        allowed = [result for result in results if self._is_allowed_address(ipaddress.ip_address(result["host"]))]
        if not allowed:
            raise _not_public(host)
        return allowed

    async def close(self) -> None:
        """Release what the wrapped resolver holds."""
        await self._resolver.close()


def _parse(text: str, base: URL | None = None) -> URL:
    """Parse a URL, or a reference relative to `base`."""
    try:
        if len(text) > MAX_URL_LENGTH:
            raise ValueError(f"it is longer than {MAX_URL_LENGTH} characters")
        url = URL(text)
        target = url if base is None else base.join(url)
        if target.scheme not in ("http", "https") or not target.host or not 0 < (target.port or 0) < 65536:
            raise ValueError("it is not an http or https URL with a host")
    except ValueError as error:
        raise InvalidRequest(f"the URL of the image is invalid: {error}") from error
    if target.user is not None or target.password is not None:
        raise InvalidRequest("the URL of the image must not contain a user name or password")
    return target


async def _read(response: ClientResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise _failed(response.url, f"the server responded with status {response.status}")
    content = bytearray()
    if (response.content_length or 0) <= max_bytes:
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            content += chunk
            if len(content) > max_bytes:
                break
        else:
            return bytes(content)
    raise InvalidRequest(f"the image has more than {max_bytes} bytes (`vision.max_image_bytes`)")


def _failed(url: URL, reason: str) -> InvalidRequest:
    # Without the path and the query, which may contain secrets.
    return InvalidRequest(f"the image cannot be downloaded from {excerpt(url.authority)}: {reason}")


def _not_public(host: str) -> InvalidRequest:
    return InvalidRequest(f"{excerpt(host)} is not a host on the public internet, so the daemon does not connect to it")
