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
from osaurusctl.formatting import parse_duration, parse_size
from osaurusd import config
from osaurusd.wire.files import replace_file

_NEW_FILE_MODE = 0o600


_EXAMPLES = {"bytes": "a size such as 512MB, 8GB or 16GiB", "seconds": "a duration such as 90s, 15m or 1h"}
"""What to write for the value of a key, by its unit."""


def set_key(path: Path, key: str, text: str) -> Any:
    """Set `key` to `text` and return the value.

    `text` is TOML if that yields the key's type. Otherwise it is a size, a duration, the only element of a list or a
    string, depending on the key.

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
        try:
            _write(path, after)
        except CliError as error:
            if error.body.param == key and (example := _EXAMPLES.get(_setting(key).unit or "")):
                error.hint = f"use a number, or {example}"
            raise
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
    text = text.strip()
    setting = _setting(key)
    try:
        value = tomlkit.value(text)
    except TOMLKitError:
        value = None
    if value is not None and _is_valid(value.unwrap(), setting.type):
        return value
    amount = _parse_amount(text, setting.unit)
    for candidate in (text, amount, [text]):
        if candidate is not None and _is_valid(candidate, setting.type) and not text.startswith("["):
            return tomlkit.item(candidate)
    # The check of the result reports what is wrong with it.
    return tomlkit.string(text) if value is None else value


def _parse_amount(text: str, unit: str | None) -> float | None:
    """Parse an amount with a unit; whole numbers become integers, as people write them."""
    amount = parse_size(text) if unit == "bytes" else parse_duration(text) if unit == "seconds" else None
    return int(amount) if amount is not None and amount == int(amount) else amount


def _setting(key: str) -> config.Setting:
    """Return what the configuration knows about `key`; nothing about an unknown one."""
    unknown = config.Setting(key=key, default=None, type=Any, unit=None, range="", description="", needs_restart=False)
    return next((setting for setting in config.settings() if setting.key == key), unknown)


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
