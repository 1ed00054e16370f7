"""Patterns for web origins: which pages and desktop apps the configuration lets in. Pure.

An origin is what a browser says of the page that makes a request: scheme, host and port, without a path
(https://www.rfc-editor.org/rfc/rfc6454#section-7). A pattern is one of three things, and nothing else:

- an origin as it stands: `https://chat.example`, `http://192.168.1.5:3000`, `tauri://localhost`, `app://obsidian.md`,
  `file://`
- one whose first label is `*`, which stands for exactly one label: `https://*.example.org`, `vscode-webview://*`
- `null`, said in full: what sandboxed pages and local files send, whoever made them
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

MAX_LENGTH = 255

NULL = "null"

_WEB = {"http": 80, "https": 443}
"""Schemes of pages that anybody may publish, and the ports that browsers leave out."""

_SCHEME = r"[a-z][a-z0-9+.-]*"
_LABEL = r"[a-z0-9_-]+"
_HOST = rf"(?:{_LABEL}|\*)?(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\]"
_PATTERN = re.compile(rf"(?P<scheme>{_SCHEME})://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")
_ORIGIN = re.compile(rf"{_SCHEME}://(?:[a-z0-9._-]*|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?")
_LOOPBACK = re.compile(r"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?")

# A name with fewer labels behind the `*` is everybody's: `https://*.com`.
_WEB_LABELS = 2


@dataclass(frozen=True)
class Pattern:
    """A pattern that has been read; `text` is how browsers would spell it."""

    text: str
    matches: Callable[[str], object]


def compiled(text: str) -> Pattern:
    """The pattern that `text` is.

    Raises:
        ValueError: it is none; the message says what would be one.
    """
    spelled = text.lower()
    if spelled == NULL:
        return _exact(NULL)
    if spelled == "*":
        raise ValueError("a lone `*` would let every web page in; name the origins")
    found = _PATTERN.fullmatch(spelled) if len(text) <= MAX_LENGTH else None
    if found is None or not text.isascii():
        raise ValueError(f"{text[:MAX_LENGTH]!r} is no origin; {_wanted(spelled)}")
    scheme, host, port = found["scheme"], found["host"], found["port"]
    _refuse_unfit(text, scheme, host, port)
    if port is not None and int(port) == _WEB.get(scheme):
        port = None
    return _pattern(scheme, host, port)


def is_allowed(origin: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, which are all right, lets this origin in."""
    return any(_kept(pattern).matches(origin) for pattern in patterns)


def is_loopback(origin: str) -> bool:
    """Whether it is a page that this machine itself serves over loopback, on whichever port."""
    return _LOOPBACK.fullmatch(origin) is not None


def is_origin(text: str) -> bool:
    """Whether a browser could send this as the origin of a page or app that can be named."""
    return len(text) <= MAX_LENGTH and _ORIGIN.fullmatch(text) is not None


_kept = lru_cache(maxsize=256)(compiled)


def _refuse_unfit(text: str, scheme: str, host: str, port: str | None) -> None:
    """What has the form of a pattern and must not be one.

    Raises:
        ValueError: it is such.
    """
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} has no possible port")
    if scheme in _WEB and not host:
        raise ValueError(f"{text!r} has no host")
    if not host.startswith("*") or scheme not in _WEB:
        return
    if len([label for label in host.split(".")[1:] if label]) < _WEB_LABELS:
        raise ValueError(f"{text!r} would let in everybody's pages; a `*` needs two labels behind it: `*.example.org`")


def _pattern(scheme: str, host: str, port: str | None) -> Pattern:
    suffix = "" if port is None else f":{int(port)}"
    text = f"{scheme}://{host}{suffix}"
    if not host.startswith("*"):
        return _exact(text)
    tail = re.escape(f"{host.removeprefix('*')}{suffix}")
    return Pattern(text, re.compile(rf"{re.escape(scheme)}://{_LABEL}{tail}").fullmatch)


def _exact(text: str) -> Pattern:
    return Pattern(text, text.__eq__)


def _wanted(spelled: str) -> str:
    scheme, colon, rest = spelled.partition("://")
    if colon and "/" in rest:
        return f"it has no path: `{scheme}://{rest.partition('/')[0]}`"
    if "*" in rest.removeprefix("*") or (rest.startswith("*") and len(rest) > 1 and not rest.startswith("*.")):
        return "`*` may only be the whole first label of the host: `https://*.example.org`"
    return "it is `scheme://host`, `scheme://host:port`, or `null`"
