"""Edit the configuration file: keep comments and formatting, and never write an invalid file.

Only commands that edit import this module: importing tomlkit takes as long as running `osaurusctl ls`.
"""

import contextlib
import itertools
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Item

from osaurusctl import config_file
from osaurusctl.errors import CliError
from osaurusctl.files import replace_file
from osaurusd import config

_NEW_FILE_MODE = 0o600


def set_key(path: Path, key: str, text: str) -> Any:
    """Set `key` to `text`, parsed as TOML if that yields the key's type, otherwise as a string; return the value.

    Raises:
        CliError: the result would be invalid; the file is unchanged.
    """
    with _toml_errors(path):
        before = config_file.read_text(path)
        value = _parse_value(key, text)
        document = tomlkit.parse(before)
        *sections, name = key.split(".")
        table: Any = document
        for section in sections:
            if section not in table:
                if table is document:
                    _add_blank_line(document)
                table[section] = tomlkit.table()
            table = table[section]
            if not isinstance(table, MutableMapping):
                raise config_file.config_error(f"{path}: `{section}` is not a table", key)
        if table is document and name not in document and (offset := _first_table_offset(before)) is not None:
            after = f"{before[:offset]}{tomlkit.key(name).as_string()} = {value.as_string()}\n\n{before[offset:]}"
        else:
            table[name] = value
            after = tomlkit.dumps(document)
        _write(path, after)
    return value.unwrap()


def unset_key(path: Path, key: str) -> bool:
    """Remove `key` from the file; return whether the file had it.

    Raises:
        CliError: the key is unknown, or the result would be invalid; the file is unchanged.
    """
    with _toml_errors(path):
        document = tomlkit.parse(config_file.read_text(path))
        *sections, name = key.split(".")
        table: Any = document
        for section in sections:
            table = table.get(section) if isinstance(table, MutableMapping) else None
        if not isinstance(table, MutableMapping) or name not in table:
            if key not in config.known_keys():
                raise config_file.unknown_key(key)
            return False
        del table[name]
        _write(path, tomlkit.dumps(document))
    return True


@contextlib.contextmanager
def _toml_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except TOMLKitError as error:
        raise config_file.config_error(f"{path}: {error}") from error


def _parse_value(key: str, text: str) -> Item:
    try:
        value = tomlkit.value(text.strip())
    except TOMLKitError:
        return tomlkit.string(text)
    kind = _key_type(key)
    return value if _is_valid(value.unwrap(), kind) or not _is_valid(text, kind) else tomlkit.string(text)


def _key_type(key: str) -> Any:
    """Return the type of `key`; Any if the key is unknown, which the check of the result reports."""
    kind: Any = config.Config
    for name in key.split("."):
        fields = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
        kind = next((field.type for field in fields if field.name == name), Any)
    return kind


def _is_valid(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _add_blank_line(document: Any) -> None:
    """End the document with a blank line, to separate a table that follows."""
    text = document.as_string()
    if text and not text.endswith("\n"):
        document.add(tomlkit.nl())
    if text and not text.endswith("\n\n"):
        document.add(tomlkit.nl())


def _first_table_offset(text: str) -> int | None:
    """Return the offset of the first table and the comment above it; None if a key precedes it.

    tomlkit would insert a new top-level key between the comment and its table.
    """
    lines = text.split("\n")
    head = len(list(itertools.takewhile(lambda line: line.strip() == "" or line.lstrip()[0] == "#", lines)))
    if head == len(lines) or lines[head].lstrip()[0] != "[":
        return None
    while head and lines[head - 1].strip():
        head -= 1
    return sum(len(line) + 1 for line in lines[:head])


def _write(path: Path, text: str) -> None:
    """Replace the file, or the target of a symbolic link, if `text` is a valid configuration."""
    target = path.resolve()
    mode = _NEW_FILE_MODE
    if target.exists():
        if not target.is_file():
            raise CliError(f"{path} is not a regular file")
        mode = stat.S_IMODE(target.stat().st_mode)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check(draft: Path) -> None:
        try:
            config_file.load(draft, env={})
        except CliError as error:
            raise config_file.config_error(str(error).replace(str(draft), str(path)), error.body.param) from error

    replace_file(target, text.encode(), mode, check=check)
