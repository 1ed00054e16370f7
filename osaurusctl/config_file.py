"""The configuration as its file and the environment have it: the keys' values, and where each comes from."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from osaurusctl.errors import CliError
from osaurusd import config
from osaurusd.errors import ConfigError
from osaurusd.wire.errors import ErrorCode


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A key's value and where it comes from; `variable` names the environment's."""

    key: str
    value: Any
    source: Literal["default", "file", "environment"]
    variable: str | None = None


def load(path: Path, *, env: Mapping[str, str] = os.environ) -> config.Config:
    """The configuration that `path` and `env` make.

    Raises:
        CliError: it is wrong; the message says where.
    """
    try:
        return config.load(path, env=env)
    except ConfigError as error:
        raise wrong(error.message, error.param) from error


def settings(path: Path) -> list[Setting]:
    """Every key.

    Raises:
        CliError: the configuration is wrong.
    """
    holds = msgspec.to_builtins(load(path))
    written = tomllib.loads(read(path))
    return [_setting(key, _look_up(holds, key), written) for key in config.known_keys()]


def setting(path: Path, key: str) -> Setting:
    """One key.

    Raises:
        CliError: the configuration is wrong, or there is no such key.
    """
    for each in settings(path):
        if each.key == key:
            return each
    raise unknown(key)


def overriding(key: str) -> str | None:
    """The environment variable that overrides `key` here."""
    for variable, where in config.ENVIRONMENT.items():
        if ".".join(where) == key and variable in os.environ:
            return variable
    return None


def read(path: Path) -> str:
    """The file's text, with its line ends as they are."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise wrong(f"{path}: {error}") from error


def unknown(key: str) -> CliError:
    """What a key that does not exist fails with."""
    known = list(config.known_keys())
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return wrong(f"unknown key `{key}`" + (f"; did you mean `{near[0]}`?" if near else ""), key)


def wrong(message: str, param: str | None = None) -> CliError:
    """What a wrong configuration fails with."""
    return CliError(message, code=ErrorCode.CONFIG_ERROR, param=param)


def _setting(key: str, value: Any, written: Mapping[str, Any]) -> Setting:
    if variable := overriding(key):
        return Setting(key=key, value=value, source="environment", variable=variable)
    return Setting(key=key, value=value, source="default" if _look_up(written, key) is None else "file")


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree
