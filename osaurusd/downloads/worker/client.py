"""The HTTP clients of the download process, with one rule for proxies and certificates.

huggingface_hub requests metadata with the synchronous client, and files are received with the asynchronous one.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from socksio.exceptions import ProtocolError

from osaurusd.downloads.worker.errors import PullError, certificate_error, describe_failure
from osaurusd.downloads.worker.proxies import Proxy, find_proxy
from osaurusd.platform.certificates import create_client_context

_METADATA_TIMEOUT_SECONDS = 30.0

# Errors that concern the proxy rather than the server behind it. httpcore2 asserts the types of SOCKS replies.
_PROXY_ERRORS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, ProtocolError, AssertionError)

T = TypeVar("T", httpx2.HTTPTransport, httpx2.AsyncHTTPTransport)


def create_client() -> httpx2.Client:
    """Return a client for metadata, as huggingface_hub expects it.

    Raises:
        PullError: the certificate authorities cannot be read.
    """
    return httpx2.Client(
        transport=_Transport(),
        trust_env=False,
        follow_redirects=True,
        timeout=_METADATA_TIMEOUT_SECONDS,
        event_hooks={"request": [_reject_if_offline]},
    )


def create_async_client(connections: int, timeout_seconds: float) -> httpx2.AsyncClient:
    """Return a client for files.

    Args:
        connections: maximum number of connections.
        timeout_seconds: how long to wait for a connection, and for data.

    Raises:
        PullError: the certificate authorities cannot be read.
    """
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    timeout = httpx2.Timeout(timeout_seconds, pool=None)
    return httpx2.AsyncClient(transport=_AsyncTransport(limits), trust_env=False, timeout=timeout)


class _Routes(Generic[T]):
    """The transports to each proxy, and to servers without one."""

    def __init__(self, create: Callable[[ssl.SSLContext, httpx2.Proxy | None], T]) -> None:
        self._create: Callable[[ssl.SSLContext, httpx2.Proxy | None], T] = create
        self._ssl_context = _create_ssl_context()
        self._transports: dict[Proxy | None, T] = {}

    def choose(self, proxy: Proxy | None) -> T:
        if proxy not in self._transports:
            self._transports[proxy] = self._create(self._ssl_context, httpx2.Proxy(proxy.url) if proxy else None)
        return self._transports[proxy]

    def all(self) -> Iterator[T]:
        yield from self._transports.values()


class _Transport(httpx2.BaseTransport):
    def __init__(self) -> None:
        self._routes = _Routes(lambda context, proxy: httpx2.HTTPTransport(context, trust_env=False, proxy=proxy))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        proxy = find_proxy(request.url)
        with _named_in_errors(proxy):
            return self._routes.choose(proxy).handle_request(request)

    def close(self) -> None:
        for transport in self._routes.all():
            transport.close()


class _AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, limits: httpx2.Limits) -> None:
        self._routes = _Routes(
            lambda context, proxy: httpx2.AsyncHTTPTransport(context, trust_env=False, proxy=proxy, limits=limits)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        proxy = find_proxy(request.url)
        with _named_in_errors(proxy):
            return await self._routes.choose(proxy).handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._routes.all():
            await transport.aclose()


@contextlib.contextmanager
def _named_in_errors(proxy: Proxy | None) -> Iterator[None]:
    """Name the proxy in errors of its connections."""
    try:
        yield
    except _PROXY_ERRORS as error:
        if proxy is None or certificate_error(error):
            raise
        raise httpx2.ProxyError(f"the proxy {proxy} failed: {describe_failure(error)}") from error


def _reject_if_offline(request: httpx2.Request) -> None:
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled(f"HF_HUB_OFFLINE disables requests to {request.url.host}")


def _create_ssl_context() -> ssl.SSLContext:
    try:
        return create_client_context()
    except OSError as error:
        raise PullError(str(error)) from error
