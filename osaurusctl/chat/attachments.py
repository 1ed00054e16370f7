"""What a prompt consists of besides its text: files, images, and the format of the answer."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from osaurusctl.chat.images import image_part, image_type
from osaurusctl.chat.stream import Message

JSON_FORMAT = "json"


def user_message(prompt: str, files: Sequence[Path] = (), images: Sequence[Path] = ()) -> Message:
    """Build the message of a user. Text files precede the prompt.

    Raises:
        click.UsageError: a file cannot be read, or is of another type.
    """
    text = "\n\n".join([*map(_quote_file, files), prompt])
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [{"type": "text", "text": text}, *map(image_part, images)]}


def parse_format(value: str) -> dict[str, Any]:
    """Return the `response_format` for `json` or the path of a JSON schema.

    Raises:
        click.UsageError: the file cannot be read, or contains no JSON object.
    """
    if value == JSON_FORMAT:
        return {"type": "json_object"}
    content = _read(Path(value), 'use "json" or the path of a JSON schema')
    try:
        schema = json.loads(content)
    except ValueError as error:
        raise click.UsageError(f"{value} is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise click.UsageError(f"{value} is not a JSON schema: it must contain a JSON object")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _quote_file(path: Path) -> str:
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if text is None or "\0" in text:
        hint = "; use --image for images" if image_type(_read(path)) else ""
        raise click.UsageError(f"{path} is not a text file in UTF-8{hint}")
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{path.name}:\n{fence}\n{text.rstrip(chr(10))}\n{fence}"


def _read(path: Path, hint: str | None = None) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}" + (f"; {hint}" if hint else "")) from error
