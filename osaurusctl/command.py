"""The base classes of all commands: `--json` anywhere, and modules that load when their command is called."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

from osaurusctl.output import Output


def json_option() -> click.Option:
    """`--json`, which may stand before and after the subcommand. Eager, so that later usage errors obey it."""
    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_turn_json_on,
        help="Print one JSON document on standard output.",
    )


def _turn_json_on(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    output = ctx.find_object(Output)
    if value and output:
        output.json = True


class Command(click.Command):
    """A command that takes `--json`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())


class Group(click.Group):
    """A command of several, which take `--json` like itself."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(json_option())


class LazyGroup(Group):
    """A group that imports a command's module, and takes its `command`, when that command is asked for."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in self._modules:
            return None
        command: click.Command = importlib.import_module(self._modules[cmd_name]).command
        return command
