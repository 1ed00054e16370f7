"""The help command."""

import click

from osaurusctl.command import Command, Group
from osaurusctl.output import Output


@click.command("help", cls=Command, examples=["osaurusctl help", "osaurusctl help run", "osaurusctl help config set"])
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of a command"""
    context = ctx.find_root()
    for name in names:
        context = click.Context(_find_command(context, name), info_name=name, parent=context)
    text = context.get_help()
    ctx.ensure_object(Output).show({"command": context.command_path, "help": text}, text)


def _find_command(parent: click.Context, name: str) -> click.Command:
    group = parent.command
    if isinstance(group, Group):
        return group.require_command(parent, name)
    raise click.UsageError(f'"{parent.command_path}" has no command "{name}"', ctx=parent)
