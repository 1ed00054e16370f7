"""What this server may be called: the names that a `Host` header may have.

A page that rebinds its own name to 127.0.0.1 still sends its own name, so a name that is not ours gives it away. The
port is not compared: it proves nothing about the page, and differs where a tunnel or a development server lies between.
"""

import ipaddress
import json
import re
from collections.abc import Iterable

from aiohttp import hdrs, web

from osaurusd.config import Server
from osaurusd.errors import Forbidden, InvalidRequest

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

# The host as it stands there, whatever it is, and a port. Spaces, user names and paths are left in and match nothing.
_WITH_PORT = re.compile(r"(?P<name>\[[^\[\]]*\]|[^:]*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)

_NAME = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]+\]")

_SHOWN_CHARACTERS = 100


def allowed_hosts(server: Server) -> frozenset[str]:
    """Names, without port, that the `Host` header may have. An address that means `all` is no name."""
    bound = [] if _is_wildcard(server.host) else [server.host]
    return LOOPBACK_HOSTS | {_bracketed(host.lower()) for host in (*bound, *server.allowed_hosts)}


def check_host(request: web.Request, allowed: Iterable[str]) -> str:
    """The name by which this server was called.

    Raises:
        InvalidRequest: there is not exactly one `Host`.
        Forbidden: it is none of `allowed`.
    """
    values = request.headers.getall(hdrs.HOST, [])
    if len(values) != 1:
        raise InvalidRequest("the request must have exactly one `Host` header")
    name = name_of(values[0])
    if name not in allowed:
        raise _not_ours(values[0])
    return name


def name_of(host: str) -> str:
    """A `Host` less its port, as browsers spell it; what makes no sense stays as it is."""
    found = _WITH_PORT.fullmatch(host.lower())
    if found is None or int(found["port"] or 0) > 65535:
        return host
    name = found["name"]
    if not name.startswith("["):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1])}]"
    except ValueError:
        return host


def _not_ours(host: str) -> Forbidden:
    shown = host if len(host) <= _SHOWN_CHARACTERS else f"{host[:_SHOWN_CHARACTERS]}…"
    message = f"the `Host` {shown!r} is none of this server's names (`server.allowed_hosts`)"
    name = name_of(host)
    if not _NAME.fullmatch(name):
        return Forbidden(f"{message}, and could be none")
    line = f"allowed_hosts = [{json.dumps(name)}]"
    return Forbidden(f"{message}; `{line}` under `[server]` in the config file makes it one, after `osaurusctl reload`")


def _bracketed(host: str) -> str:
    """A name as it stands in a `Host` header, less its port; IPv6 addresses stand in brackets there, and shortened."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        found = _WITH_PORT.fullmatch(host)
        return host if found is None else found["name"]
    return f"[{address}]" if address.version == 6 else host


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""
