import contextlib
import json
from pathlib import Path
from typing import Any

import click

from osaurusctl import complete, config_file, process
from osaurusctl.command import Group
from osaurusctl.config_file import Setting
from osaurusctl.layout import table
from osaurusctl.output import Output
from osaurusd.config import known_keys
from osaurusd.wire import paths


@click.group("config", cls=Group)
def command() -> None:
    """Show and change the configuration.

    This needs no running daemon; one that runs takes changes over at `osaurusctl reload`.
    """


def _keys(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return complete.matching(known_keys(), incomplete)


@command.command("path")
@click.pass_obj
def path_(output: Output) -> None:
    """Print where the configuration file lies, or would lie."""
    path = _file()
    output.show({"path": str(path), "exists": path.exists()}, str(path))


@command.command("check")
@click.pass_obj
def check(output: Output) -> None:
    """Say whether the configuration is right."""
    path = _file()
    config_file.load(path)
    there = path.exists()
    output.show({"path": str(path), "exists": there}, f"{path} is ok" if there else f"{path} does not exist: defaults")


@command.command("get")
@click.argument("key", required=False, shell_complete=_keys)
@click.pass_obj
def get(output: Output, key: str | None) -> None:
    """Print the value of KEY, or of every key with where it comes from."""
    if key is None:
        settings = config_file.settings(_file())
        rows = [("KEY", "VALUE", "FROM"), *((each.key, _toml(each.value), _source(each)) for each in settings)]
        output.show(settings, table(rows))
        return
    setting = config_file.setting(_file(), key)
    output.show(setting, setting.value if isinstance(setting.value, str) else _toml(setting.value, nothing=""))
    if setting.value is None:
        output.note(f"{key} is not set")
    _say_if_overridden(key, output)


@command.command("set")
@click.argument("key", shell_complete=_keys)
@click.argument("value")
@click.pass_obj
def set_(output: Output, key: str, value: str) -> None:
    """Set KEY to VALUE, which is TOML or a plain string.

    Comments and formatting of the file are kept. A value that is not allowed leaves the file as it is.
    """
    from osaurusctl import config_edit  # noqa: PLC0415 - it takes long to import

    path = _file()
    result = config_edit.put(path, key, value)
    output.show({"path": str(path), "key": key, "value": result}, f"{key} = {_toml(result)}")
    _say_what_is_next(key, output)


@command.command("unset")
@click.argument("key", shell_complete=_keys)
@click.pass_obj
def unset(output: Output, key: str) -> None:
    """Take KEY out of the file, so that its default holds."""
    from osaurusctl import config_edit  # noqa: PLC0415 - it takes long to import

    path = _file()
    removed = config_edit.drop(path, key)
    output.show({"path": str(path), "key": key, "removed": removed}, f"{key} is unset" if removed else "")
    if removed:
        _say_what_is_next(key, output)
    else:
        output.note(f"{key} is not set")


def _file() -> Path:
    return paths.resolve().config_file


def _toml(value: Any, nothing: str = "none") -> str:
    """A value as the file would have it: of the values there are, JSON's are TOML's."""
    return nothing if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _source(setting: Setting) -> str:
    return f"{setting.source} ({setting.variable})" if setting.variable else setting.source


def _say_what_is_next(key: str, output: Output) -> None:
    _say_if_overridden(key, output)
    with contextlib.suppress(OSError):
        if process.holder(paths.resolve().lock) is not None:
            output.note("`osaurusctl reload` lets the running daemon know")


def _say_if_overridden(key: str, output: Output) -> None:
    if variable := config_file.overriding(key):
        output.note(f"the environment variable {variable} overrides the file")
