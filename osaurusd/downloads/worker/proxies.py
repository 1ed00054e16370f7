"""The proxy for a URL, from the environment or the system's settings."""

import ipaddress
from dataclasses import dataclass
from urllib.request import getproxies, proxy_bypass

import httpx2

from osaurusd.downloads.worker.errors import PullError

_DEFAULT_SCHEME = "http"
_SUPPORTED = ("http", "https", "socks5", "socks5h")
_SYNONYMS = {"socks": "socks5"}


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it."""

    url: httpx2.URL
    variable: str

    def __str__(self) -> str:
        # Without user name and password.
        return f"{self.url.scheme}://{self.url.netloc.decode('ascii')} ({self.variable})"


def find_proxy(url: httpx2.URL) -> Proxy | None:
    """Return the proxy for a URL: HTTP_PROXY or HTTPS_PROXY, or else ALL_PROXY, unless NO_PROXY contains the host.

    Raises:
        PullError: the proxy is invalid or of an unsupported kind.
    """
    configured = getproxies()
    key = next((key for key in (url.scheme, "all") if configured.get(key)), None)
    if key is None or _is_bypassed(url, configured.get("no", "")):
        return None
    return _parse(configured[key], f"{key.upper()}_PROXY")


def _parse(value: str, variable: str) -> Proxy:
    scheme, separator, address = value.strip().rpartition("://")
    scheme = (scheme if separator else _DEFAULT_SCHEME).lower()
    scheme = _SYNONYMS.get(scheme, scheme)
    if scheme not in _SUPPORTED:
        raise PullError(f"{variable}: {scheme}:// proxies are not supported; use {', '.join(_SUPPORTED)}")
    try:
        url = httpx2.URL(f"{scheme}://{address}")
    except httpx2.InvalidURL:
        url = None
    if url is None or not url.host:
        raise PullError(f"{variable} is not the URL of a proxy; use, for example, http://proxy.example.com:3128")
    return Proxy(url, variable)


def _is_bypassed(url: httpx2.URL, no_proxy: str) -> bool:
    return bool(proxy_bypass(url.netloc.decode("ascii"))) or _is_in_networks(url.host, no_proxy)


def _is_in_networks(host: str, no_proxy: str) -> bool:
    """Whether an address is in a network such as `10.0.0.0/8`, which Python's `proxy_bypass` does not understand."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(_contains(entry.strip(), address) for entry in no_proxy.split(","))


def _contains(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
