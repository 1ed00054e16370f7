"""Patterns for the hosts of URLs that the daemon may request.

A pattern is a host name such as `images.example.com`; `*.example.com` for its subdomains; or `*` for every host. The
first two may have a port behind them. Without one, they match the default ports of http and https only.
"""

import re
from collections.abc import Iterable

import msgspec

from osaurusd.wire.errors import as_json

DEFAULT_PORTS = (80, 443)

_LABEL = r"[a-z0-9_-]+"
_PATTERN = re.compile(rf"(?:(?P<wildcard>\*\.)?(?P<host>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?)|\*")
_MAX_SHOWN = 100


class HostPattern(msgspec.Struct, frozen=True):
    """A parsed pattern; a `host` of None matches every host."""

    host: str | None = None
    subdomains: bool = False
    port: int | None = None

    def matches(self, host: str, port: int) -> bool:
        """Whether a URL with this host, in lower case, and this port is allowed."""
        if port not in (DEFAULT_PORTS if self.port is None else (self.port,)):
            return False
        return self.host is None or (host.endswith(f".{self.host}") if self.subdomains else host == self.host)


def parse_pattern(text: str) -> HostPattern:
    """Parse a pattern.

    Raises:
        ValueError: the pattern is invalid; the message shows a valid form.
    """
    match = _PATTERN.fullmatch(text.lower())
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(
            f'{as_json(text[:_MAX_SHOWN])} is not a host; use a name such as "images.example.com", "*.example.com" or '
            '"example.com:8443", without a scheme and a path'
        )
    return HostPattern(match["host"], bool(match["wildcard"]), int(match["port"]) if match["port"] else None)


def is_allowed(host: str, port: int, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, which are valid, matches a host and port."""
    return any(parse_pattern(pattern).matches(host.lower(), port) for pattern in patterns)
