"""Images of a prompt: files that options name, and paths that users paste or drag into a conversation."""

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftyphev", "image/heic"),
    (4, b"ftypmif1", "image/heic"),
    (4, b"ftypmsf1", "image/heic"),
)
"""The types of images by the bytes at an offset."""

_HEAD_BYTES = 16

# As terminals insert the path of a file: quoted, with escaped characters, or as a URL. Screenshots of macOS have a
# no-break space in their names, so only these characters separate words.
_PATH = r"(?:file://|~/|\.{0,2}/)"
_SINGLE = rf"'(?P<single>{_PATH}[^'\n]*)'"
_DOUBLE = rf'"(?P<double>{_PATH}[^"\n]*)"'
_PLAIN = rf"(?P<plain>{_PATH}(?:\\.|[^ \t\r\n\\])*)"
_WORD = re.compile(rf"(?<![^ \t\r\n])(?:{_SINGLE}|{_DOUBLE}|{_PLAIN})(?![^ \t\r\n])")
_ESCAPED = re.compile(r"\\(.)")


def image_part(path: Path) -> dict[str, Any]:
    """Build the part of a message with an image.

    Raises:
        click.UsageError: the file cannot be read, or is not an image.
    """
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise click.UsageError(f"{path} is empty")
    media_type = image_type(data)
    if media_type is None:
        raise click.UsageError(f"{path} is not a PNG, JPEG, WebP, GIF or HEIC image; use --file for text files")
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def image_type(data: bytes) -> str | None:
    """Return the type of an image from the beginning of its file; None if it is no image."""
    for offset, signature, media_type in _SIGNATURES:
        if data.startswith(signature, offset):
            return media_type
    return None


def parse_path(text: str) -> Path:
    """Return the path in text as terminals insert it."""
    match = _WORD.fullmatch(text.strip())
    return _path_of(match) if match else Path(text.strip()).expanduser()


def take_images(prompt: str) -> tuple[str, list[Path]]:
    """Remove the paths of image files from a prompt; return the rest and the paths. Other paths stay in the prompt."""
    whole = prompt.strip()
    if "\n" not in whole and _WORD.match(whole) and _is_image(path := Path(whole).expanduser()):
        return "", [path]
    paths: list[Path] = []

    def take(match: re.Match[str]) -> str:
        path = _path_of(match)
        if not _is_image(path):
            return match[0]
        paths.append(path)
        return ""

    rest = _WORD.sub(take, prompt)
    return (rest.strip(), paths) if paths else (prompt, [])


def _path_of(match: re.Match[str]) -> Path:
    text = match["single"] or match["double"] or _ESCAPED.sub(r"\1", match["plain"])
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return Path(text).expanduser()


def _is_image(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return image_type(file.read(_HEAD_BYTES)) is not None
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False
