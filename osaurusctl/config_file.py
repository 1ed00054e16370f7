"""Read the configuration: the value of each key, and whether it comes from the file or the environment."""

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
    """The value of a key and its source; `variable` is the environment variable that sets it."""

    key: str
    value: Any
    source: Literal["default", "file", "environment"]
    variable: str | None = None


def load(path: Path, *, env: Mapping[str, str] = os.environ) -> config.Config:
    """Load the configuration.

    Raises:
        CliError: the file or a variable is invalid.
    """
    try:
        return config.load(path, env=env)
    except ConfigError as error:
        raise config_error(error.message, error.param) from error


def list_settings(path: Path) -> list[Setting]:
    """Return every key with its value.

    Raises:
        CliError: the configuration is invalid.
    """
    values = msgspec.to_builtins(load(path))
    written = tomllib.loads(read_text(path))
    return [_build_setting(key, _look_up(values, key), written) for key in config.known_keys()]


def get_setting(path: Path, key: str) -> Setting:
    """Return one key with its value.

    Raises:
        CliError: the configuration is invalid, or the key is unknown.
    """
    for setting in list_settings(path):
        if setting.key == key:
            return setting
    raise unknown_key(key)


def overriding_variable(key: str) -> str | None:
    """Return the environment variable that currently overrides `key`."""
    for variable, where in config.ENVIRONMENT.items():
        if ".".join(where) == key and variable in os.environ:
            return variable
    return None


def read_text(path: Path) -> str:
    """Read the file with its original line endings; empty if it does not exist."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise config_error(f"{path}: {error}") from error


def unknown_key(key: str) -> CliError:
    similar = difflib.get_close_matches(key, list(config.known_keys()), n=1, cutoff=0.5)
    return config_error(f"unknown key `{key}`" + (f"; did you mean `{similar[0]}`?" if similar else ""), key)


def config_error(message: str, param: str | None = None) -> CliError:
    return CliError(message, code=ErrorCode.CONFIG_ERROR, param=param)


def _build_setting(key: str, value: Any, written: Mapping[str, Any]) -> Setting:
    if variable := overriding_variable(key):
        return Setting(key=key, value=value, source="environment", variable=variable)
    return Setting(key=key, value=value, source="default" if _look_up(written, key) is None else "file")


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree
