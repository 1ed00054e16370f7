"""Patterns for web origins: which pages and desktop apps the configuration allows.

An origin is what a browser sends about the page that makes a request: scheme, host and port, without a path
(https://www.rfc-editor.org/rfc/rfc6454#section-7). A pattern is one of:

- an exact origin: `https://chat.example`, `http://192.168.1.5:3000`, `tauri://localhost`, `app://obsidian.md`, `file://`
- an origin whose first label is `*`, which matches exactly one label: `https://*.example.org`, `vscode-webview://*`
- `null`: the origin of sandboxed pages and local files, whatever their source
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import msgspec

from osaurusd.wire.errors import as_json

MAX_LENGTH = 255

NULL = "null"

_DEFAULT_PORTS = {"http": 80, "https": 443}
"""The schemes of web pages, with the ports that browsers omit."""

_SCHEME = r"[a-z][a-z0-9+.-]*"
_LABEL = r"[a-z0-9_-]+"
_HOST = rf"(?:{_LABEL}|\*)?(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\]"
_PATTERN = re.compile(rf"(?P<scheme>{_SCHEME})://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")
_ORIGIN = re.compile(rf"{_SCHEME}://(?:[a-z0-9._-]*|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?")
_LOOPBACK = re.compile(r"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?")

# With fewer labels behind the `*`, a pattern matches hosts of unrelated owners: `https://*.com`.
_MIN_LABELS = 2


class OriginPattern(msgspec.Struct, frozen=True):
    """A parsed pattern; `text` is its normalized form."""

    text: str
    matches: Callable[[str], object]


def parse_pattern(text: str) -> OriginPattern:
    """Parse a pattern.

    Raises:
        ValueError: the pattern is invalid; the message shows a valid form.
    """
    normalized = text.lower()
    if normalized == NULL:
        return _exact(NULL)
    if normalized == "*":
        raise ValueError("`*` alone would allow every web page; list the origins")
    match = _PATTERN.fullmatch(normalized) if len(text) <= MAX_LENGTH else None
    if match is None or not text.isascii():
        raise ValueError(f"{as_json(text[:MAX_LENGTH])} is not an origin; {_hint(normalized)}")
    scheme, host, port = match["scheme"], match["host"], match["port"]
    _check_parts(text, scheme, host, port)
    if port is not None and int(port) == _DEFAULT_PORTS.get(scheme):
        port = None
    return _pattern(scheme, host, port)


def is_allowed(origin: str, patterns: Iterable[str]) -> bool:
    """Whether an origin matches one of the patterns, all of which are valid."""
    return any(_parse_cached(pattern).matches(origin) for pattern in patterns)


def is_loopback(origin: str) -> bool:
    """Whether the page is served by this machine over loopback, on any port."""
    return _LOOPBACK.fullmatch(origin) is not None


def is_origin(text: str) -> bool:
    """Whether a browser can send this text as the origin of a page or app that a pattern can name."""
    return len(text) <= MAX_LENGTH and _ORIGIN.fullmatch(text) is not None


_parse_cached = lru_cache(maxsize=256)(parse_pattern)


def _check_parts(text: str, scheme: str, host: str, port: str | None) -> None:
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"{as_json(text)} has an invalid port")
    if scheme in _DEFAULT_PORTS and not host:
        raise ValueError(f"{as_json(text)} has no host")
    if not host.startswith("*") or scheme not in _DEFAULT_PORTS:
        return
    if len([label for label in host.split(".")[1:] if label]) < _MIN_LABELS:
        raise ValueError(
            f"{as_json(text)} would allow pages of unrelated owners; `*` needs at least two labels behind it: "
            "`https://*.example.org`"
        )


def _pattern(scheme: str, host: str, port: str | None) -> OriginPattern:
    suffix = "" if port is None else f":{int(port)}"
    text = f"{scheme}://{host}{suffix}"
    if not host.startswith("*"):
        return _exact(text)
    tail = re.escape(f"{host.removeprefix('*')}{suffix}")
    return OriginPattern(text, re.compile(rf"{re.escape(scheme)}://{_LABEL}{tail}").fullmatch)


def _exact(text: str) -> OriginPattern:
    return OriginPattern(text, text.__eq__)


def _hint(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and "/" in rest:
        return f"remove the path: `{scheme}://{rest.partition('/')[0]}`"
    if "*" in rest.removeprefix("*") or (rest.startswith("*") and len(rest) > 1 and not rest.startswith("*.")):
        return "`*` may only replace the whole first label of the host: `https://*.example.org`"
    return "use `scheme://host`, `scheme://host:port` or `null`"
