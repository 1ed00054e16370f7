"""Trusted hosts: the values that the `Host` header of a request may have.

A web page that rebinds its own name to 127.0.0.1 still sends that name as `Host`, so unknown names are rejected.
The port is not compared: it proves nothing about the page, and differs behind a tunnel or a development server.
"""

import ipaddress
import json
import re
import socket
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import psutil
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from osaurusd.addresses import bracket
from osaurusd.config import Server
from osaurusd.errors import Forbidden, InvalidRequest
from osaurusd.wire.admin import SOCKET_HOST
from osaurusd.wire.errors import as_json

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

ADDRESS_CACHE_SECONDS = 5.0
"""How long the machine's addresses are cached; it may join another network at any time."""

MAX_SHOWN_CHARACTERS = 100

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_HOST_AND_PORT = re.compile(r"(?P<name>\[[^\[\]]*\]|[^:]*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]+\]")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def trusted_hosts(server: Callable[[], Server], bound: "BoundHosts | None" = None) -> Middleware:
    """Build a middleware that rejects requests for other hosts.

    Args:
        server: returns the configuration in force.
        bound: the names that follow from the bound addresses.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        allowed = configured_hosts(server()) | (bound.names() if bound is not None else frozenset())
        check_host(request, allowed)
        return await handler(request)

    return check


@web.middleware
async def trusted_socket_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject requests over the Unix socket for hosts other than the ones that its clients send."""
    check_host(request, {SOCKET_HOST, "localhost"})
    return await handler(request)


class BoundHosts:
    """The hosts that follow from the addresses that clients connect to.

    Args:
        addresses: the bound addresses; a wildcard covers every address and name of the machine.
        clock: seconds.
    """

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = addresses
        self._clock = clock
        self._names: frozenset[str] = frozenset()
        self._expires_at = float("-inf")

    def names(self) -> frozenset[str]:
        if all(map(is_loopback, self._addresses)):
            return frozenset()
        if self._clock() >= self._expires_at:
            self._names = frozenset(_hosts_of(self._addresses))
            self._expires_at = self._clock() + ADDRESS_CACHE_SECONDS
        return self._names


def configured_hosts(server: Server) -> frozenset[str]:
    """Return the loopback names, `server.host` unless it is a wildcard, and `server.allowed_hosts`, without ports."""
    bound = [] if _is_wildcard(server.host) else [server.host]
    return LOOPBACK_HOSTS | {_as_host_header(host.lower()) for host in (*bound, *server.allowed_hosts)}


def check_host(request: web.Request, allowed: Container[str]) -> None:
    """Check the request's `Host` header.

    Raises:
        InvalidRequest: there is not exactly one `Host` header.
        Forbidden: the host is not allowed.
    """
    values = request.headers.getall(hdrs.HOST, [])
    if len(values) != 1:
        raise InvalidRequest("the request must have exactly one `Host` header")
    if host_name(values[0]) not in allowed:
        raise _untrusted(values[0])


def host_name(host: str) -> str:
    """Return a `Host` header without its port, normalized as browsers send it; anything malformed unchanged."""
    match = _HOST_AND_PORT.fullmatch(host.lower())
    if match is None or int(match["port"] or 0) > 65535:
        return host
    name = match["name"]
    if not name.startswith("["):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1])}]"
    except ValueError:
        return host


def is_loopback(address: str) -> bool:
    return parse_address(address).is_loopback


def parse_address(address: str) -> IpAddress:
    """Parse an address without its zone; an IPv4 address that is mapped into IPv6 becomes IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _untrusted(host: str) -> Forbidden:
    shown = host if len(host) <= MAX_SHOWN_CHARACTERS else f"{host[:MAX_SHOWN_CHARACTERS]}…"
    message = f"the host {as_json(shown)} is not trusted"
    name = host_name(host)
    if not _HOST_NAME.fullmatch(name):
        return Forbidden(f"{message} and is not a valid name for `server.allowed_hosts`")
    line = f"allowed_hosts = [{json.dumps(name)}]"
    return Forbidden(
        f"{message}; to allow it, set `{line}` under `[server]` in the config file (`server.allowed_hosts`) and run "
        '"osaurusctl reload"'
    )


def _hosts_of(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        if not parse_address(address).is_unspecified:
            yield _address_as_host(address)
            continue
        for interface in psutil.net_if_addrs().values():
            yield from (_address_as_host(entry.address) for entry in interface if entry.family in _IP_FAMILIES)
        hostname = socket.gethostname().lower()
        yield hostname
        if "." not in hostname:
            # The name that macOS and Avahi announce by mDNS.
            yield f"{hostname}.local"


def _address_as_host(address: str) -> str:
    return bracket(str(parse_address(address)))


def _as_host_header(host: str) -> str:
    """Return a configured host as browsers send it, without port; IPv6 addresses are shortened and in brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        match = _HOST_AND_PORT.fullmatch(host)
        return host if match is None else match["name"]
    return bracket(str(address)) if address.version == 6 else host


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""
