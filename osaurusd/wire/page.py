"""The files of the web page. The daemon serves it to look and chat, `osaurusctl ui` serves it to manage models as well.

The files are read once: an upgrade must not mix the files of two releases.
"""

import hashlib
import mimetypes
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import msgspec

FOLDER = Path(__file__).parents[1] / "ui" / "static"
"""The built files. Their source is in `osaurusd/ui/frontend/`, and `make ui` builds them."""

ASSETS = "/ui/assets/"
"""Path of the files that the page loads. Their names contain a hash of their content."""

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "connect-src 'self'",
                "img-src 'self' data: blob:",
                "font-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
            )
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)
"""The page loads nothing but its own files, runs no script in its markup, and cannot be framed."""

_MODE = '<meta name="osaurus-mode" content="{mode}">'

# The tables of the system differ, and may be wrong.
_TYPES = mimetypes.MimeTypes(filenames=())
_TYPES.add_type("text/javascript", ".js")
_TYPES.add_type("font/woff2", ".woff2")
_TYPES.add_type("image/x-icon", ".ico")
_TYPES.add_type("application/manifest+json", ".webmanifest")


class Mode(StrEnum):
    """What the page can do: in mode `manage`, it also manages models and shows the log."""

    PUBLIC = "public"
    MANAGE = "manage"


class PageFile(msgspec.Struct, frozen=True):
    """A file of the page, and the headers of its responses."""

    body: bytes
    headers: Mapping[str, str]

    def is_unchanged(self, if_none_match: str | None) -> bool:
        """Whether a client has this file already, by its `If-None-Match` header."""
        return if_none_match is not None and self.headers["ETag"] in if_none_match


class Page(msgspec.Struct, frozen=True):
    """The page: its document, None if the installation is incomplete, and the files that this loads by name."""

    document: PageFile | None
    assets: Mapping[str, PageFile]

    @classmethod
    def load(cls, mode: Mode, folder: Path = FOLDER) -> "Page":
        """Read the files."""
        try:
            text = (folder / "index.html").read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(None, {})
        public = _MODE.format(mode=Mode.PUBLIC)
        document = text.replace(public, _MODE.format(mode=mode)).encode()
        paths = sorted((folder / "assets").iterdir()) if (folder / "assets").is_dir() else []
        immutable = "public, max-age=31536000, immutable"
        return cls(
            _page_file(document, "text/html; charset=utf-8", "no-cache"),
            {path.name: _page_file(path.read_bytes(), _content_type(path.name), immutable) for path in paths},
        )


def _page_file(body: bytes, content_type: str, cache_control: str) -> PageFile:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return PageFile(
        body, {**SECURITY_HEADERS, "Content-Type": content_type, "Cache-Control": cache_control, "ETag": etag}
    )


def _content_type(name: str) -> str:
    guessed = _TYPES.guess_type(name)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed
