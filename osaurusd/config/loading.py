"""Reading the configuration from its sources."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import msgspec

from osaurusd import addresses, origins, url_hosts
from osaurusd.config.keys import Section
from osaurusd.config.schema import Config
from osaurusd.config.settings import is_section, known_keys, plain_type, settings
from osaurusd.errors import ConfigError
from osaurusd.wire.errors import explain_as_json

ENVIRONMENT = {
    "OSAURUS_HOST": ("server", "host"),
    "OSAURUS_PORT": ("server", "port"),
    "OSAURUS_DEFAULT_MODEL": ("default_model",),
    "OSAURUS_LOG_LEVEL": ("log", "level"),
}
"""Environment variables that override the file, and the path of the key that each sets."""

Tree = dict[str, Any]

_TYPES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "object": "a table",
    "str": "a string",
}
_TYPE = re.compile(r"`([a-z]+)(?: \| null)?`")


def load(
    path: Path, *, env: Mapping[str, str] = os.environ, flags: Mapping[tuple[str, ...], object] | None = None
) -> Config:
    """Read the configuration.

    Args:
        path: the TOML file. A missing file counts as empty.
        env: the environment.
        flags: values from the command line by key path, such as `{("server", "port"): 8080}`.

    Raises:
        ConfigError: the file is not valid TOML, a key is unknown or a value is invalid. The message names the source
            and the key, `param` is the key.
    """
    tree = _read(path)
    _reject_unknown_keys(tree, path)
    # Convert after each source, so that an error names the source it comes from.
    config = _convert(tree, str(path))
    for variable, key in ENVIRONMENT.items():
        if variable in env:
            _set(tree, key, env[variable])
            config = _convert(tree, f"the environment variable {variable}", strict=False)
    if flags:
        for key, value in flags.items():
            _set(tree, key, value)
        config = _convert(tree, "the command line", strict=False)
    return config


def _read(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _keys_in(tree: Tree, section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The dotted keys that a file sets, and whether each is known."""
    types: dict[str, Any] = {field.name: plain_type(field.type) for field in msgspec.structs.fields(section)}
    for key, value in tree.items():
        kind: Any = types.get(key)
        if isinstance(value, dict) and key in types and get_origin(kind) is not dict:
            # A key that is not a table has no keys below it: `Section` has no fields.
            yield from _keys_in(value, kind if is_section(kind) else Section, f"{prefix}{key}.")
        else:
            yield prefix + key, key in types


def _reject_unknown_keys(tree: Tree, path: Path) -> None:
    for key in (key for key, is_known in _keys_in(tree) if not is_known):
        match = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.5)
        hint = f"; did you mean `{match[0]}`?" if match else '; run "osaurusctl config get" to list the keys'
        raise ConfigError(f"{path}: unknown key `{key}`{hint}", param=key)


def _set(tree: Tree, key: tuple[str, ...], value: object) -> None:
    for name in key[:-1]:
        tree = tree.setdefault(name, {})
    tree[key[-1]] = value


def _convert(tree: Tree, source: str, *, strict: bool = True) -> Config:
    try:
        config = msgspec.convert(tree, Config, strict=strict)
    except msgspec.ValidationError as error:
        reason, _, location = str(error).partition(" - at `$.")
        key = location.rstrip("`")
        raise ConfigError(f"{source}: `{key}`: {_explain(reason, key)}", param=key) from error
    _check(config.server.host, "server.host", addresses.check_listen_host, source)
    _check_items(config.server.allowed_origins, "server.allowed_origins", origins.parse_pattern, source)
    _check_items(config.vision.allowed_url_hosts, "vision.allowed_url_hosts", url_hosts.parse_pattern, source)
    _check_text(config.distributed.listen, "distributed.listen", addresses.parse_endpoint, source)
    _check_text(config.distributed.link_address, "distributed.link_address", addresses.parse_private_address, source)
    return config


def _explain(reason: str, key: str) -> str:
    """Translate msgspec's description of an invalid value, which names types of Python and JSON."""
    choices = next((each.range for each in settings() if each.key == key and get_origin(each.type) is Literal), None)
    if choices is not None:
        return f"{explain_as_json(reason).replace('Invalid enum', 'invalid')}; expected one of {choices}"
    text = _TYPE.sub(lambda match: _TYPES.get(match[1], match[1]), reason).removesuffix(".0")
    return text[:1].lower() + text[1:]


def _check_items(items: list[str], name: str, parse: Callable[[str], object], source: str) -> None:
    for index, item in enumerate(items):
        _check(item, f"{name}[{index}]", parse, source)


def _check_text(value: str, key: str, parse: Callable[[str], object], source: str) -> None:
    """Check a value that may be empty."""
    if value:
        _check(value, key, parse, source)


def _check(value: str, key: str, parse: Callable[[str], object], source: str) -> None:
    try:
        parse(value)
    except ValueError as error:
        raise ConfigError(f"{source}: `{key}`: {error}", param=key) from error
