"""Edits of the configuration file that keep all the rest of it as it was, and never leave a wrong one.

Only the commands that edit import this: tomlkit takes as long to import as a whole `osaurusctl ls` takes to run.
"""

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Item

from osaurusctl import config_file
from osaurusctl.errors import CliError
from osaurusd import config

_NEW_FILE_MODE = 0o600


def put(path: Path, key: str, text: str) -> Any:
    """Set `key` to `text`, as TOML if that gives a value of the key's type, else as a string; returns the value.

    Raises:
        CliError: the file would be wrong; it is left as it is.
    """
    with _explained(path):
        before = config_file.read(path)
        value = _value(key, text)
        document = tomlkit.parse(before)
        *sections, name = key.split(".")
        table: Any = document
        for section in sections:
            if section not in table:
                if table is document:
                    _separate(document)
                table[section] = tomlkit.table()
            table = table[section]
            if not isinstance(table, MutableMapping):
                raise config_file.wrong(f"{path}: `{section}` is not a table", key)
        if table is document and name not in document and (at := _above_first_table(before)) is not None:
            after = f"{before[:at]}{tomlkit.key(name).as_string()} = {value.as_string()}\n\n{before[at:]}"
        else:
            table[name] = value
            after = tomlkit.dumps(document)
        _replace(path, after)
    return value.unwrap()


def drop(path: Path, key: str) -> bool:
    """Take `key` out of the file; whether it was there.

    Raises:
        CliError: there is no such key, or the file would be wrong; it is left as it is.
    """
    with _explained(path):
        document = tomlkit.parse(config_file.read(path))
        *sections, name = key.split(".")
        table: Any = document
        for section in sections:
            table = table.get(section) if isinstance(table, MutableMapping) else None
        if not isinstance(table, MutableMapping) or name not in table:
            if key not in config.known_keys():
                raise config_file.unknown(key)
            return False
        del table[name]
        _replace(path, tomlkit.dumps(document))
    return True


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except TOMLKitError as error:
        raise config_file.wrong(f"{path}: {error}") from error


def _value(key: str, text: str) -> Item:
    try:
        value = tomlkit.value(text.strip())
    except TOMLKitError:
        return tomlkit.string(text)
    kind = _kind(key)
    return value if _fits(value.unwrap(), kind) or not _fits(text, kind) else tomlkit.string(text)


def _kind(key: str) -> Any:
    """The type that the configuration has for `key`; where it has no such key, loading says what is wrong."""
    kind: Any = config.Config
    for name in key.split("."):
        fields = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
        kind = next((field.type for field in fields if field.name == name), Any)
    return kind


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _separate(document: Any) -> None:
    """A blank line before a table that is added."""
    text = document.as_string()
    if text and not text.endswith("\n"):
        document.add(tomlkit.nl())
    if text and not text.endswith("\n\n"):
        document.add(tomlkit.nl())


def _above_first_table(text: str) -> int | None:
    """Where the first table and the comment right above it start, if no key comes before; tomlkit would part them."""
    lines = text.split("\n")
    head = len(list(itertools.takewhile(lambda line: line.strip() == "" or line.lstrip()[0] == "#", lines)))
    if head == len(lines) or lines[head].lstrip()[0] != "[":
        return None
    while head and lines[head - 1].strip():
        head -= 1
    return sum(len(line) + 1 for line in lines[:head])


def _replace(path: Path, text: str) -> None:
    """Let the file hold `text` if that is a right configuration: all of it or, whatever happens, none."""
    real = path.resolve()
    mode = _NEW_FILE_MODE
    if real.exists():
        if not real.is_file():
            raise CliError(f"{path} is not an ordinary file")
        mode = stat.S_IMODE(real.stat().st_mode)
    real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            _check(draft, path)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        draft.replace(real)
    finally:
        draft.unlink(missing_ok=True)
    _sync_folder(real.parent)


def _check(draft: Path, path: Path) -> None:
    try:
        config_file.load(draft, env={})
    except CliError as error:
        raise config_file.wrong(str(error).replace(str(draft), str(path)), error.body.param) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
