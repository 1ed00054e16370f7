"""What the sockets for clients are open to, and who must show a key there."""

import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator, Sequence

import psutil
from aiohttp import web

from osaurusd.config import Server
from osaurusd.errors import ConfigError
from osaurusd.http.keyring import Keyring
from osaurusd.wire.keys import Protection

# How long the machine's addresses are taken to be what they were: it may have joined another network since.
NAMES_SECONDS = 5.0

_WAYS_OUT = (
    "make one with `osaurusctl key create` (which needs a daemon that runs, with `--host localhost` if need be, or a "
    "service that waits), or serve this machine only (`server.host`), or say that nobody is to be asked for one "
    "(`--insecure`, `server.insecure`)"
)


class Exposure:
    """Judges by the addresses that are bound, whoever bound them and whatever the configuration says.

    Args:
        addresses: that clients connect to.
        keyring: the keys that are accepted.
    """

    def __init__(self, addresses: Sequence[str], keyring: Keyring) -> None:
        self.exposed = not all(map(_is_loopback, addresses))
        self._addresses = addresses
        self._keyring = keyring
        self._names: frozenset[str] = frozenset()
        self._stale_at = 0.0

    def needs_keys(self, server: Server) -> bool:
        """Whether some client must send a key."""
        return server.require_key or (self.exposed and not server.insecure)

    def asks(self, server: Server, request: web.Request) -> bool:
        """Whether this client must. A reverse proxy on this machine is a client on this machine, whoever uses it."""
        if server.require_key or not server.trust_loopback:
            return self.needs_keys(server)
        return self.needs_keys(server) and not _is_local(request)

    def check(self, server: Server) -> None:
        """Refuse to serve where keys are asked for and there is none.

        Raises:
            ConfigError: that is so; the message says the ways out.
        """
        if not self.needs_keys(server) or len(self._keyring):
            return
        lost = f" ({self._keyring.fault})" if self._keyring.fault else ""
        if server.require_key:
            why, param = "`server.require_key` is set", "server.require_key"
        else:
            open_to = ", ".join(address for address in self._addresses if not _is_loopback(address))
            why, param = f"other machines can connect to {open_to}", "server.host"
        raise ConfigError(f"{why}, and there is no API key{lost}: {_WAYS_OUT}", param=param)

    def faults(self, server: Server) -> list[str]:
        """What is amiss while it serves, a line each."""
        if self.needs_keys(server) and not len(self._keyring):
            return ["no API key is left, and requests over TCP need one; `osaurusctl key create` makes one"]
        return []

    def protection(self, server: Server) -> Protection:
        """All of it, as status shows it."""
        return Protection(
            exposed=self.exposed,
            key_required=self.needs_keys(server),
            trusts_loopback=server.trust_loopback and not server.require_key,
            keys=len(self._keyring),
            tls=server.tls_certificate is not None,
        )

    def names(self) -> frozenset[str]:
        """What `Host` may be because of the bound addresses. Where all are bound, that is every one there is."""
        if not self.exposed:
            return frozenset()
        if time.monotonic() >= self._stale_at:
            self._names = frozenset(_names(self._addresses))
            self._stale_at = time.monotonic() + NAMES_SECONDS
        return self._names


def _names(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        if not _ip(address).is_unspecified:
            yield _as_host(address)
            continue
        for interface in psutil.net_if_addrs().values():
            yield from (_as_host(each.address) for each in interface if each.family in _IP_FAMILIES)
        hostname = socket.gethostname().lower()
        yield hostname
        if "." not in hostname:
            # By which macOS and Avahi announce it to the network.
            yield f"{hostname}.local"


_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _as_host(address: str) -> str:
    """An address as a `Host` header has it."""
    found = _ip(address)
    return f"[{found}]" if found.version == 6 else str(found)


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its zone, and as IPv4 where it is IPv4 on an IPv6 socket."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _is_loopback(address: str) -> bool:
    return _ip(address).is_loopback


def _is_local(request: web.Request) -> bool:
    """Whether the client connected over loopback; one that is gone already is not trusted."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer is not None and _is_loopback(str(peer[0]))
